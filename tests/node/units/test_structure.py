"""An engine's next step uses a model's changed modules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from node.engines.packed import PackedEngine
from node.units.structure import Structure
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from swarm.models.span import SpanModule
from tests.devices import DEVICE, feed
from tests.families import Checkpoints

SPAN, TOKENS = Span(0, 2), 12


class Adapter(nn.Module):
    """LoRA: a linear layer, and a small one beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        rank = 2
        self.down = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _in_place(span: SpanModule) -> None:
    with torch.no_grad():
        for parameter in span.layers.parameters():
            parameter.mul_(1.1)


def _data(span: SpanModule) -> None:
    for parameter in span.layers.parameters():
        parameter.data = parameter.data * 1.1


def _loaded(span: SpanModule) -> None:
    span.layers.load_state_dict({name: tensor * 1.1 for name, tensor in span.layers.state_dict().items()})


def _assigned(span: SpanModule) -> None:
    span.layers.load_state_dict({name: tensor * 1.1 for name, tensor in span.layers.state_dict().items()}, assign=True)


def _adapted(span: SpanModule) -> None:
    span.layers[1].mlp.down_proj = Adapter(span.layers[1].mlp.down_proj)


def _hooked(span: SpanModule) -> None:
    span.layers[1].mlp.register_forward_hook(lambda _module, _given, made: made * 2)


def _parametrized(span: SpanModule) -> None:
    parametrize.register_parametrization(span.layers[0].mlp.down_proj, "weight", Doubled())


def _without_a_layer(span: SpanModule) -> None:
    span.layers[1].mlp.act_fn = nn.Identity()


CHANGES: dict[str, tuple[Callable[[SpanModule], None], bool]] = {
    "in place": (_in_place, True),
    "data": (_data, True),
    "load_state_dict": (_loaded, True),
    "load_state_dict(assign=True)": (_assigned, False),
    "an adapter put in": (_adapted, False),
    "a hook": (_hooked, False),
    "a parametrization": (_parametrized, False),
    "another activation": (_without_a_layer, False),
}
"""What changes, and whether captured graphs see it by themselves."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def load(checkpoints: Checkpoints) -> SpanModule:
    torch.manual_seed(3)
    return load_span(open_checkpoint(checkpoints("llama")), SPAN, dtype=torch.float32, device=DEVICE)


def warm_engine(span: SpanModule) -> PackedEngine:
    engine = PackedEngine(span, 1 << 30)
    warm_up(engine)
    return engine


def warm_up(engine: PackedEngine) -> None:
    for _ in range(3):  # forwards of one to three tokens
        engine.warm_up()


def decode(engine: PackedEngine, hidden: Tensor) -> Tensor:
    """Three tokens at first, then one by one."""
    row, edges = engine.open(), [0, *range(3, TOKENS + 1)]
    outputs = [feed(engine, [(row, stop - start)], hidden[:, start:stop]) for start, stop in pairwise(edges)]
    engine.close(row)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_is_seen_by_the_next_step(checkpoints: Checkpoints, name: str) -> None:
    change, stays = CHANGES[name]
    span, hidden = load(checkpoints), torch.randn(1, TOKENS, 64)
    engine = warm_engine(span)
    before = decode(engine, hidden)
    assert engine._graphs.replayed == TOKENS - 2, "all of its steps"
    change(span)
    with torch.inference_mode():
        expected = span(hidden.to(DEVICE)).to(hidden.device)
    assert (expected - before).abs().max() > 0.01 * expected.abs().max(), "it is no change that can be missed"
    assert torch.allclose(decode(engine, hidden), expected, rtol=1e-4, atol=1e-4)
    assert engine._graphs.replayed == (TOKENS - 2) * (1 + stays)
    warm_up(engine)
    assert torch.allclose(decode(engine, hidden), expected, rtol=1e-4, atol=1e-4)
    assert engine._graphs.replayed == (TOKENS - 2) * (2 + stays), "it is captured anew"


def test_a_change_between_two_captures_is_in_neither(checkpoints: Checkpoints) -> None:
    span, hidden = load(checkpoints), torch.randn(1, TOKENS, 64)
    engine = PackedEngine(span, 1 << 30)
    engine.warm_up()
    _assigned(span)
    warm_up(engine)
    with torch.inference_mode():
        assert torch.allclose(decode(engine, hidden), span(hidden.to(DEVICE)).to(hidden.device), rtol=1e-4, atol=1e-4)
    assert engine._graphs.replayed == TOKENS - 2


def test_a_structure_tells_more_and_fewer_parts_from_the_same() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    structure = Structure(module)
    assert structure.is_current()
    module.append(nn.Linear(2, 2))
    assert not structure.is_current() and Structure(module).is_current()
    del module[2]
    assert structure.is_current(), "the very same parts"
    handle = module[0].register_forward_hook(lambda *_: None)
    assert not structure.is_current()
    handle.remove()
    module[1].bias = None
    assert not structure.is_current()
