"""Captured graphs compute the model's own bits, or are not used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from node.engines import selftest
from node.engines.graphs import linear_kernels
from node.engines.graphs.engine_graphs import EngineGraphs
from node.engines.packed import PackedEngine
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from swarm.models.span import SpanModule
from tests.devices import DEVICE, feed
from tests.families import Checkpoints

SIZE = 8


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    torch.manual_seed(7)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


class Blocks(nn.Module):
    """Two blocks around one attention each; `twist` is what one of them does besides."""

    def __init__(self, twist: Callable[[Blocks, Tensor], Tensor] = lambda _blocks, x: x) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(4))
        self.register_buffer("kept", torch.ones(SIZE))
        self.stray = torch.full((SIZE,), 2.0)
        self.number = 1.0
        self.twist = twist

    def forward(self, step: Any, hidden: Tensor, positions: Tensor) -> Tensor:
        x = hidden + positions[..., None] / 100
        for index in range(2):
            before, after = self.layers[2 * index], self.layers[2 * index + 1]
            query, key, value = before(x)[:, None], (x * 2)[:, None], x[:, None]
            x = self.twist(self, x) + F.silu(after(step.attend(index, query, key, value, None).flatten(2)))
        return x


class Step:
    """Attends to this step's tokens alone."""

    def __init__(self) -> None:
        self.calls = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        self.calls += 1
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@pytest.fixture(autouse=True)
def kernels_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of linear kernels is a measurement, and other kernels have other last bits. Tests of the choice replace this."""
    monkeypatch.setattr(linear_kernels, "fastest", lambda weights, count: F.linear)


def graphs_of(blocks: Blocks) -> EngineGraphs:
    return EngineGraphs(blocks, blocks, selftest.is_close)


def capture(graphs: EngineGraphs) -> None:
    graphs.capture((Step(), *inputs()), (Step(), *inputs()), (Step(), *inputs()))


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(1, count, SIZE), torch.randint(0, 99, (1, count))


def run(graphs: EngineGraphs, blocks: Blocks, count: int = 3) -> None:
    """A forward gives what the blocks give, replayed or not."""
    given = inputs(count)
    torch.testing.assert_close(graphs.forward(Step(), *given), blocks(Step(), *given), rtol=0, atol=0)


def test_a_captured_forward_is_replayed_bit_for_bit() -> None:
    blocks = Blocks()
    graphs = graphs_of(blocks)
    run(graphs, blocks)
    assert graphs.replayed == 0
    capture(graphs)
    for _ in range(5):
        run(graphs, blocks)
    assert (graphs.replayed, graphs.refusal) == (5, None)
    run(graphs, blocks, count=4)
    assert graphs.replayed == 5  # another number of tokens is another graph


def test_positions_of_another_shape_are_not_replayed() -> None:
    blocks = Blocks()
    graphs = graphs_of(blocks)
    capture(graphs)
    hidden, positions = inputs()
    graphs.forward(Step(), hidden, positions[:, :1])
    assert graphs.replayed == 0


def test_a_replay_calls_every_attention() -> None:
    blocks, step = Blocks(), Step()
    graphs = graphs_of(blocks)
    capture(graphs)
    graphs.forward(step, *inputs())
    assert (graphs.replayed, step.calls) == (1, 2)


def test_parameters_that_change_in_place_are_seen() -> None:
    blocks = Blocks()
    graphs = graphs_of(blocks)
    capture(graphs)
    for parameter in blocks.parameters():
        parameter.mul_(1.5)
    run(graphs, blocks)
    assert graphs.replayed == 1


def _in_place(_blocks: Blocks, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1] = 3.0
    y.add_(x).mul_(2)
    part = y[..., :2]
    part += 1
    return y


HARMLESS: dict[str, Callable[[Blocks, Tensor], Tensor]] = {
    "a number of numpy": lambda _, x: x * np.float64(0.3),
    "writing to what the forward made": _in_place,
    "shapes and dtypes": lambda _, x: x.view(*x.shape[:2], -1).to(torch.float64).float().contiguous() * x.dim() * len(x),
    "several results": lambda _, x: torch.cat(
        [x.topk(2).values, *x.split(3, dim=-1)[1:], x.max(dim=-1, keepdim=True).values], -1
    ),
    "numbers as an index": lambda _, x: x[:, torch.arange(x.shape[1]).flip(0)],
    "a transposed parameter": lambda blocks, x: x @ blocks.layers[0].weight.T,
    "a layer that does nothing": lambda _, x: F.dropout(x, training=False),
    "a buffer": lambda blocks, x: x * blocks.kept,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_is_captured(name: str) -> None:
    blocks = Blocks(HARMLESS[name])
    graphs = graphs_of(blocks)
    capture(graphs)
    run(graphs, blocks)
    assert (graphs.replayed, graphs.refusal) == (1, None)


def _counting(blocks: Blocks, x: Tensor) -> Tensor:
    blocks.number += 1
    return x * blocks.number


def _writing(blocks: Blocks, x: Tensor) -> Tensor:
    blocks.kept[:1] += 1
    return x * blocks.kept


STEERED: dict[str, tuple[Callable[[Blocks, Tensor], Tensor], str]] = {
    "a condition": (lambda _, x: x if x.sum() > 0 else -x, "__bool__"),
    "a number read": (lambda _, x: x * x.sum().item(), "item"),
    "numbers read": (lambda _, x: x * x[0, 0].tolist()[0], "tolist"),
    "numpy": (lambda _, x: x + torch.from_numpy(x.numpy()), "numpy"),
    "indices found": (lambda _, x: x + (x > 0).nonzero().shape[0], "nonzero"),
    "a mask as an index": (lambda _, x: x + x[x > 0].sum(), "depends on numbers"),
    "values told apart": (lambda _, x: x + x.round().unique().numel(), "depends on numbers"),
    "a comparison": (lambda _, x: x * 2 if torch.equal(x, x.abs()) else x, "depends on numbers"),
    "a tensor that is no parameter": (lambda blocks, x: x * blocks.stray, "made outside of the capture"),
    "a buffer written to": (_writing, "writes to what it keeps"),
}


@pytest.mark.parametrize("name", STEERED)
def test_what_numbers_steer_is_run_as_it_is_written(name: str) -> None:
    twist, reason = STEERED[name]
    blocks = Blocks(twist)
    graphs = graphs_of(blocks)
    capture(graphs)
    assert graphs.refusal is not None and reason in graphs.refusal
    assert graphs.next_count() is None
    if name != "a buffer written to":
        run(graphs, blocks)
    assert graphs.replayed == 0


def test_a_graph_that_is_out_of_date_is_found_out() -> None:
    """A change of a Python number cannot be seen by the capture; the check on other inputs sees it."""
    graphs = graphs_of(Blocks(_counting))
    capture(graphs)
    assert graphs.refusal is not None and "other numbers" in graphs.refusal


def test_a_graph_that_is_wrong_for_several_sequences_is_found_out() -> None:
    """Also if it is right for one: a model's Python may ask a step what it holds."""

    class Sequences(Step):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

    blocks = Blocks()

    def forward(step: Any, hidden: Tensor, positions: Tensor) -> Tensor:
        return blocks(step, hidden, positions) * getattr(step, "_step", step).count

    graphs = EngineGraphs(forward, blocks, selftest.is_close)
    for count, is_refused in ((1, False), (2, True)):
        graphs.capture((Sequences(1), *inputs()), (Sequences(1), *inputs()), (Sequences(count), *inputs()))
        assert (graphs.refusal is not None) is is_refused
    assert graphs.refusal is not None and "other numbers" in graphs.refusal


def test_faster_kernels_are_close_and_wrong_ones_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[int] = []

    def spoilt(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        wrong.append(1)
        return F.linear(tokens, weight, bias) * 1.01

    for kernel, is_close in ((linear_kernels.transposed, True), (spoilt, False)):
        monkeypatch.setattr(linear_kernels, "fastest", lambda weights, count, kernel=kernel: kernel)
        blocks = Blocks()
        graphs = graphs_of(blocks)
        capture(graphs)
        used = len(wrong)
        given = inputs()
        torch.testing.assert_close(graphs.forward(Step(), *given), blocks(Step(), *given))
        assert graphs.replayed == 1 and len(wrong) == used
        assert bool(wrong) is not is_close  # it was tried, and not used


def test_kernels_whose_result_the_model_cannot_use_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's next call is a view, which the layout of another kernel may not allow: the graph keeps the model's own kernels."""
    monkeypatch.setattr(linear_kernels, "fastest", lambda weights, count: linear_kernels.transposed)
    blocks = Blocks(lambda blocks, x: blocks.layers[1](x).view(-1).view(x.shape))
    graphs = graphs_of(blocks)
    capture(graphs)
    run(graphs, blocks)
    assert (graphs.replayed, graphs.refusal) == (1, None)


def test_a_replayed_output_is_contiguous_with_every_kernel() -> None:
    blocks = Blocks()
    graphs = graphs_of(blocks)
    graphs._forward = lambda step, hidden, positions: blocks(step, hidden, positions).transpose(1, 2).contiguous().transpose(1, 2)
    capture(graphs)
    assert graphs.forward(Step(), *inputs()).is_contiguous() and graphs.replayed == 1


@pytest.mark.parametrize("kernel", linear_kernels.KERNELS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_an_engine_that_is_warm_replays(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, family: str, kernel: linear_kernels.LinearKernel
) -> None:
    monkeypatch.setattr(linear_kernels, "fastest", lambda weights, count: kernel)
    checkpoint = open_checkpoint(checkpoints(family))
    spans = [load_span(checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32, device=DEVICE) for _ in range(2)]
    playing, running = (PackedEngine(span, 1 << 30) for span in spans)
    while playing.warm_up():
        pass
    assert playing.used_bytes == 0
    sequences = [(engine.open(), engine.open()) for engine in (playing, running)]
    for step in [(5, 2), (1, 0), (1, 1), (1, 0), (0, 3), (2, 5), (1, 1), (16, 0), (17, 1), (1, 0)]:
        hidden = torch.randn(1, sum(step), playing.hidden_size)
        outputs = [
            feed(engine, [(sequence, count) for sequence, count in zip(own, step, strict=True) if count], hidden.clone())
            for engine, own in zip((playing, running), sequences, strict=True)
        ]
        if kernel is F.linear:
            assert torch.equal(*outputs)
        assert selftest.is_close(*outputs, hidden)
    assert (playing._graphs.replayed, playing._graphs.refusal) == (9, None)
    assert running._graphs.replayed == 0


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_the_self_test_goes_through_captured_graphs(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Several sequences of unequal lengths in a step, forks and crops, as for any engine; and each count was proved on several."""
    checkpoint, proofs = open_checkpoint(checkpoints(family)), []
    capture = EngineGraphs.capture
    monkeypatch.setattr(EngineGraphs, "capture", lambda graphs, *examples: (proofs.append(examples), capture(graphs, *examples)))

    def warmed_up(span: SpanModule, limit_bytes: int) -> PackedEngine:
        engines.append(PackedEngine(span, limit_bytes))
        while engines[0].warm_up():
            pass
        return engines[0]

    engines: list[PackedEngine] = []
    span = load_span(checkpoint, Span(0, 2), dtype=torch.float32, device=DEVICE)
    with selftest.small_windows(span):
        assert selftest.SelfTest(span).fault(warmed_up) is None
    assert engines[0]._graphs.replayed == 7, "each of its steps was replayed"
    lengths = [[(stop - start, past) for _, start, stop, past, _ in examples[-1][0].stretches] for examples in proofs]
    assert [sum(count for count, _ in one) for one in lengths] == list(range(1, 17))
    assert lengths[-1] == [(8, 2), (4, 0), (2, 5), (1, 1), (1, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_lone_token_has_the_model_s_own_bits(checkpoints: Checkpoints, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(checkpoints("llama"))
    engines = [PackedEngine(load_span(checkpoint, Span(0, 2), dtype=dtype, device=DEVICE), 1 << 30) for _ in range(2)]
    engines[0].warm_up()
    sequences = [engine.open() for engine in engines]
    for count in (5, 1, 1):
        hidden = torch.randn(1, count, engines[0].hidden_size).to(dtype)
        outputs = [feed(engine, [(sequence, count)], hidden) for engine, sequence in zip(engines, sequences, strict=True)]
        assert torch.equal(*outputs)
    assert [engine._graphs.replayed for engine in engines] == [2, 0]


def test_an_engine_without_memory_does_not_warm_up(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints("llama"))
    engine = PackedEngine(load_span(checkpoint, Span(0, 1), dtype=torch.float32, device=DEVICE), 0)
    assert not engine.warm_up()
    assert engine.used_bytes == 0
