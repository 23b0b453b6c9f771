"""Memory of engines: it grows with sequences, and comes back.

An engine tells beforehand what a step takes, and refuses it before anything changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from node.engines.engine import Engine
from node.engines.packed import PackedEngine
from node.engines.paged import PagedEngine
from node.engines.serial import RecomputeEngine, SerialEngine
from protocols.errors import CacheFullError
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from tests.devices import DEVICE, feed
from tests.families import Checkpoints

Make = Callable[[int], Engine]

ENGINES: dict[str, tuple[str, Callable[..., Any], int]] = {
    "packed": ("llama", PackedEngine, 2 * 2 * 2 * 16 * 4),
    "paged": ("llama", PagedEngine, 2 * 2 * 2 * 16 * 4),
    "serial": ("llama", SerialEngine, 2 * 2 * 2 * 16 * 4),
    "recomputing": ("openai_gpt", RecomputeEngine, 64 * 4),
    "paged states": ("qwen3_next", PagedEngine, 1),
    "serial states": ("falcon_h1", SerialEngine, 1),
}
"""Name -> family, engine, bytes of a token in two blocks (1 if states dominate: unknown here)."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Make:
    family, engine, _ = ENGINES[request.param]
    blocks = Span(1, 3) if "states" in request.param else Span(0, 2)
    span = load_span(open_checkpoint(checkpoints(family)), blocks, dtype=torch.float32, device=DEVICE)

    def build(limit: int) -> Engine:
        return engine(span, limit)

    return build


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(1, count, 64, generator=torch.Generator().manual_seed(seed))


def test_memory_grows_as_used_and_comes_back(make: Make) -> None:
    engine = make(1 << 30)
    sequence = engine.open()
    assert engine.used_bytes == 0
    feed(engine, [(sequence, 1)], noise(1))
    small = engine.used_bytes
    feed(engine, [(sequence, 500)], noise(500))
    assert 0 < small < engine.used_bytes < engine.limit_bytes
    twin = engine.fork(sequence)
    feed(engine, [(twin, 1)], noise(1))
    engine.close(sequence)
    large = engine.used_bytes
    assert large > small
    if engine.can_crop:
        engine.crop(twin, 495)
        assert engine.used_bytes <= large / 4
    engine.close(twin)
    assert engine.used_bytes == 0
    feed(engine, [(sequence, 3)], noise(3))  # a closed sequence is an empty one
    engine.close(sequence)
    assert engine.used_bytes == 0


@pytest.mark.parametrize("name", ["packed", "paged", "serial", "recomputing"])
def test_bytes_are_those_of_keys_and_values(checkpoints: Checkpoints, name: str) -> None:
    family, build, token_bytes = ENGINES[name]
    span = load_span(open_checkpoint(checkpoints(family)), Span(0, 2), dtype=torch.float32, device=DEVICE)
    engine = build(span, 1 << 30)
    sequence = engine.open()
    feed(engine, [(sequence, 640)], noise(640))
    assert 640 * token_bytes <= engine.used_bytes <= 1.5 * 640 * token_bytes


def test_growth_is_told_exactly_whatever_sequences_do(make: Make) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    engine = make(1 << 30)
    sequences = [engine.open() for _ in range(3)]
    for _ in range(40):
        action = rng.random()
        sequence = rng.choice(sequences)
        if action < 0.15 and len(sequences) < 6:
            sequences.append(engine.fork(sequence))
        elif action < 0.25:
            engine.crop(sequence, sequence.length if not engine.can_crop else rng.randint(0, sequence.length))
        elif action < 0.3 and len(sequences) > 1:
            sequences.remove(sequence)
            engine.close(sequence)
        else:
            chosen = rng.sample(sequences, rng.randint(1, len(sequences)))
            items = [(sequence, rng.choice([1, 1, 1, 3, 17, 40])) for sequence in chosen]
            before, told = engine.used_bytes, engine.growth_bytes(items)
            feed(engine, items, noise(sum(count for _, count in items)))
            assert engine.used_bytes - before == told
    for sequence in sequences:
        engine.close(sequence)
    assert engine.used_bytes == 0


def test_a_full_cache_refuses_and_leaves_every_sequence_usable(make: Make) -> None:
    """The refused step changes nothing: the same sequences go on, with the outputs that they would have had."""
    calm = make(1 << 30)
    hidden = [noise(40, seed=1), noise(30, seed=2)]
    reference = [calm.open(), calm.open()]
    feed(calm, [(reference[0], 30), (reference[1], 20)], torch.cat([hidden[0][:, :30], hidden[1][:, :20]], dim=1))
    used = calm.used_bytes
    expected = feed(calm, [(reference[0], 1), (reference[1], 1)], torch.cat([hidden[0][:, 30:31], hidden[1][:, 20:21]], dim=1))
    capacity_bytes = calm.used_bytes

    engine = make(capacity_bytes)
    sequences = [engine.open(), engine.open()]
    feed(engine, [(sequences[0], 30), (sequences[1], 20)], torch.cat([hidden[0][:, :30], hidden[1][:, :20]], dim=1))
    assert engine.used_bytes == used
    greedy = [(sequences[1], 1), (sequences[0], 4_000), (engine.open(), 4_000)]
    assert engine.growth_bytes(greedy) > engine.limit_bytes - engine.used_bytes
    with pytest.raises(CacheFullError, match="free"):
        feed(engine, greedy, noise(8_001))
    assert engine.used_bytes == used and [sequence.length for sequence in sequences] == [30, 20]
    again = feed(engine, [(sequences[0], 1), (sequences[1], 1)], torch.cat([hidden[0][:, 30:31], hidden[1][:, 20:21]], dim=1))
    assert torch.allclose(again, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_near_the_limit_sequences_grow_without_slack(checkpoints: Checkpoints) -> None:
    span = load_span(open_checkpoint(checkpoints("llama")), Span(0, 2), dtype=torch.float32, device=DEVICE)
    token_bytes = ENGINES["packed"][2]
    engine = PackedEngine(span, 640 * token_bytes)
    sequence = engine.open()
    feed(engine, [(sequence, 640)], noise(640))
    assert engine.used_bytes == engine.limit_bytes
    with pytest.raises(CacheFullError):
        feed(engine, [(sequence, 1)], noise(1))


def test_forks_share_memory_until_they_write(checkpoints: Checkpoints) -> None:
    span = load_span(open_checkpoint(checkpoints("llama")), Span(0, 2), dtype=torch.float32, device=DEVICE)
    for build in (PackedEngine, PagedEngine):
        engine = build(span, 1 << 30)
        sequence = engine.open()
        feed(engine, [(sequence, 100)], noise(100))
        used = engine.used_bytes
        twins = [engine.fork(sequence) for _ in range(5)]
        assert engine.used_bytes == used and len({sequence, *twins}) == 6
        for old in (sequence, *twins[:-1]):
            engine.close(old)
        feed(engine, [(twins[-1], 1)], noise(1))  # alone again: nothing to copy
        assert engine.used_bytes == used


def test_pages_are_clean_when_they_are_taken_again(checkpoints: Checkpoints) -> None:
    """A masked NaN is still NaN: what a sequence left in its pages must not reach the next one."""
    span = load_span(open_checkpoint(checkpoints("bloom")), Span(0, 2), dtype=torch.float32, device=DEVICE)
    engine = PagedEngine(span, 1 << 30)
    keeper, long, short = engine.open(), engine.open(), engine.open()
    feed(engine, [(keeper, 1)], noise(1))
    expected = feed(engine, [(long, 20), (short, 3)], noise(23))
    for sequence in (long, short):
        engine.close(sequence)
    poisoned = engine.open()
    feed(engine, [(poisoned, 64)], torch.full((1, 64, 64), float("nan")))
    engine.close(poisoned)
    assert engine.used_bytes > 0  # otherwise the memory itself would be new
    assert torch.equal(feed(engine, [(long, 20), (short, 3)], noise(23)), expected)


def test_a_sequence_beside_a_poisoned_one_is_not_touched(checkpoints: Checkpoints) -> None:
    for family, build in (("llama", PackedEngine), ("bloom", PagedEngine)):
        engine = build(load_span(open_checkpoint(checkpoints(family)), Span(0, 2), dtype=torch.float32, device=DEVICE), 1 << 30)
        alone, bad, good = engine.open(), engine.open(), engine.open()
        expected = feed(engine, [(alone, 4)], noise(4))
        both = feed(engine, [(bad, 9), (good, 4)], torch.cat([torch.full((1, 9, 64), float("nan")), noise(4)], dim=1))
        assert torch.allclose(both[:, 9:], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
