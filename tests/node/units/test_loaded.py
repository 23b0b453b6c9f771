"""A unit's parameters: readers keep their version, a writer meets none."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from node.engines.ends import Stretch
from node.engines.ends_selftest import choose_ends
from node.units.loaded import LoadedUnit
from protocols.errors import BadRequestError, InternalError, OverloadedError
from protocols.ids import ModelId, Span
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import EndsModel, load_ends, load_parts, load_span
from swarm.models.parts import SpanParts
from tests.devices import DEVICE
from tests.families import Checkpoints

MODEL = ModelId("tiny", "a" * 64)
SPAN = Span(1, 3)


def version(number: int) -> Weights:
    return Weights(MODEL, number, hashlib.sha256(bytes([number])).digest() if number else b"")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def load(checkpoint: Checkpoint) -> LoadedUnit[SpanParts]:
    _, parts = load_parts(checkpoint, SPAN, dtype=torch.float32, device=DEVICE)
    return LoadedUnit(Blocks.of(SPAN), parts, version(0))


def scaled(checkpoint: Checkpoint, factor: float) -> Callable[[Tensor], Tensor]:
    """What blocks loaded by themselves compute when every number is multiplied."""
    span = load_span(checkpoint, SPAN, dtype=torch.float32, device=DEVICE)
    with torch.no_grad():
        for parameter in span.layers.parameters():
            parameter.mul_(factor)
    return torch.inference_mode()(lambda hidden: span(hidden))


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return open_checkpoint(checkpoints("llama"))


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(5)).to(DEVICE)


@torch.inference_mode()
def run(parts: SpanParts, hidden: Tensor) -> Tensor:
    return parts.cut(SPAN)(hidden)


def test_a_reader_keeps_its_version_and_the_next_one_gets_the_new(checkpoint: Checkpoint, hidden: Tensor) -> None:
    unit = load(checkpoint)
    before, after = scaled(checkpoint, 1)(hidden), scaled(checkpoint, 2)(hidden)
    num_bytes = unit.bytes
    with unit.read() as old:
        unit.replace({name: tensor * 2 for name, tensor in old.holding.tensors().items()}, version(1))
        assert unit.bytes == 2 * num_bytes
        with unit.read() as new:
            assert (old.weights, new.weights, unit.weights) == (version(0), version(1), version(1))
            assert torch.equal(run(old.holding, hidden), before) and torch.equal(run(new.holding, hidden), after)
            old.close()
            old.close()
            assert unit.bytes == num_bytes and unit.num_readers == 1
    assert unit.num_readers == 0


def test_without_readers_it_is_written_in_place(checkpoint: Checkpoint, hidden: Tensor) -> None:
    unit = load(checkpoint)
    with unit.read() as reading:
        places = {name: tensor.data_ptr() for name, tensor in reading.holding.tensors().items()}
        given = {name: tensor * 2 for name, tensor in reading.holding.tensors().items()}
    num_bytes = unit.bytes
    assert unit.added_bytes(num_bytes) == 0
    unit.replace(given, version(1))
    given["1.mlp.up_proj.weight"].zero_()  # the caller's own
    with unit.read() as reading:
        assert {name: tensor.data_ptr() for name, tensor in reading.holding.tensors().items()} == places
        assert torch.equal(run(reading.holding, hidden), scaled(checkpoint, 2)(hidden)) and unit.bytes == num_bytes
        assert unit.added_bytes(num_bytes) == num_bytes


def test_what_is_not_replaced_is_shared(checkpoint: Checkpoint) -> None:
    unit = load(checkpoint)
    with unit.read() as old:
        name, tensor = next(iter(old.holding.tensors().items()))
        num_bytes = unit.bytes
        unit.replace({name: tensor + 1}, version(1))
        assert unit.bytes == num_bytes + tensor.nbytes
        with unit.read() as new:
            shared = [other for other in old.holding.tensors() if new.holding.tensors()[other] is old.holding.tensors()[other]]
            assert set(old.holding.tensors()) - set(shared) == {name}


def test_a_step_writes_beside_readers_and_in_place_without(checkpoint: Checkpoint, hidden: Tensor) -> None:
    unit = load(checkpoint)
    expected = {factor: scaled(checkpoint, factor)(hidden) for factor in (1, 2, 4)}

    def double(number: int) -> None:
        with unit.write(version(number)) as own, torch.no_grad():
            for tensor in own.values():
                tensor.mul_(2)

    with unit.read() as old:
        double(1)
        with unit.read() as new:
            assert torch.equal(run(old.holding, hidden), expected[1]) and torch.equal(run(new.holding, hidden), expected[2])
    double(2)
    with unit.read() as reading:
        assert torch.equal(run(reading.holding, hidden), expected[4])


def test_while_it_is_written_there_is_no_second_writer_and_in_place_no_reader(checkpoint: Checkpoint) -> None:
    unit = load(checkpoint)
    with unit.write(version(1)):
        for refused in (unit.read, lambda: unit.replace({}, version(2))):
            with pytest.raises(OverloadedError, match="decoder/1:3 is being written"):
                refused()
    with unit.read() as old, unit.write(version(2)):
        with unit.read() as another:
            assert another.weights == old.weights == version(1)
        with pytest.raises(OverloadedError, match="one writer"):
            unit.replace({}, version(3))
    assert unit.weights == version(2)


@pytest.mark.parametrize("is_read", [False, True])
def test_a_step_that_fails_leaves_the_readers_version_or_none(checkpoint: Checkpoint, hidden: Tensor, is_read: bool) -> None:
    unit, expected = load(checkpoint), scaled(checkpoint, 1)(hidden)
    reading = unit.read()
    whole = {name: tensor.clone() for name, tensor in reading.holding.tensors().items()}
    if not is_read:
        reading.close()
    with pytest.raises(ZeroDivisionError), unit.write(version(1)) as own, torch.no_grad():
        next(iter(own.values())).zero_()
        raise ZeroDivisionError
    assert unit.weights == version(0)
    if not is_read:
        part = dict(list(whole.items())[1:])
        for refused in (unit.read, lambda: unit.replace(part, version(1)), lambda: unit.write(version(1)).__enter__()):
            with pytest.raises(InternalError, match="holds no version"):
                refused()
        unit.replace(whole, version(1))
    with unit.read() as again:
        assert torch.equal(run(again.holding, hidden), expected)


def test_what_does_not_fit_is_refused_and_changes_nothing(checkpoint: Checkpoint, hidden: Tensor) -> None:
    unit, expected = load(checkpoint), scaled(checkpoint, 1)(hidden)
    name = "1.mlp.up_proj.weight"
    with unit.read() as reading:
        own = reading.holding.tensors()[name]
    wrong = [
        ({"0.mlp.up_proj.weight": own}, version(1), "no tensor is called str '0.mlp.up_proj.weight'"),
        ({name: own.t()}, version(1), r"is torch.float32 \[96, 64\] here, got torch.float32 \[64, 96\]"),
        ({name: own.half()}, version(1), "got torch.float16"),
        ({name: own + 1}, version(0), "other weights of tiny"),
        ({name: own + 1}, Weights(ModelId("other", "b" * 64), 1, bytes(32)), "other weights of tiny"),
    ]
    for tensors, weights, words in wrong:
        with pytest.raises(BadRequestError, match=words):
            unit.replace(tensors, weights)
    with unit.read() as reading:
        assert reading.weights == version(0) and torch.equal(run(reading.holding, hidden), expected)


def test_readers_and_a_writer_from_many_threads_never_meet(checkpoint: Checkpoint) -> None:
    """Every tensor of a version has one number, so a reader that sees two numbers has seen two versions."""
    unit, mixed, reads, is_over = load(checkpoint), [], [0], threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                reading = unit.read()
            except OverloadedError:
                continue
            with reading:
                seen = {float(value) for tensor in reading.holding.tensors().values() for value in (tensor.min(), tensor.max())}
                reads[0] += 1
                if seen != {float(reading.weights.version)} and reading.weights.version:
                    mixed.append((reading.weights.version, seen))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with unit.read() as reading:
        shapes = {name: tensor.shape for name, tensor in reading.holding.tensors().items()}
    for number in range(1, 60):
        unit.replace({name: torch.full(shape, float(number)) for name, shape in shapes.items()}, version(number))
    is_over.set()
    for thread in threads:
        thread.join()
    assert reads[0] > 20 and not mixed and unit.num_readers == 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_ends_are_a_unit_too_and_a_tied_head_follows_the_embedding(checkpoints: Checkpoints, family: str) -> None:
    checkpoint = open_checkpoint(checkpoints(family))
    loaded = load_ends(checkpoint, dtype=torch.float32, device=DEVICE)
    unit: LoadedUnit[EndsModel] = LoadedUnit(Ends(), loaded, version(0))
    old = unit.read()
    ends = choose_ends(old.holding.twin(), checkpoint.vocab_size)
    ids, hidden = torch.arange(5), torch.randn(3, ends.shape.embed_width).to(DEVICE)

    def answers(one: object) -> tuple[Tensor, Tensor]:
        return one.embed("ids", ids, [Stretch(0, 5)]).clone(), one.logits(hidden)  # type: ignore[attr-defined]

    before = answers(ends)
    unit.replace({name: tensor * 2 for name, tensor in old.holding.tensors().items()}, version(1))
    new = choose_ends(unit.read().holding.twin(), checkpoint.vocab_size)
    assert all(map(torch.equal, answers(ends), before))
    for after, other in zip(answers(new), before, strict=True):
        assert not torch.allclose(after, other, rtol=0.1)
    reference = load_ends(checkpoint, dtype=torch.float32, device=DEVICE)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(2)
    assert all(map(torch.equal, answers(new), answers(choose_ends(reference, checkpoint.vocab_size))))
