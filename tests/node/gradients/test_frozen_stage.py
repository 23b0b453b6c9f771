"""A frozen stage: bounds of a pass, and its end."""

from __future__ import annotations

import pytest
import torch

from node.gradients.frozen_stage import FrozenStage, GraphCost
from node.units.host_units import HostUnits
from node.units.loaded import LoadedUnit
from protocols.errors import BadRequestError, DrainingError, PassTooLargeError
from protocols.ids import ModelId, Span
from protocols.units import Blocks
from protocols.weights_id import Weights
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_parts
from tests.families import make_checkpoint

SPAN = Span(1, 4)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, HostUnits]:
    checkpoint = open_checkpoint(make_checkpoint("llama", tmp_path_factory.mktemp("llama")))
    weights = Weights(ModelId("llama", "a" * 64))
    return {
        dtype: HostUnits(blocks=LoadedUnit(Blocks.of(SPAN), load_parts(checkpoint, SPAN, dtype=dtype)[1], weights))
        for dtype in (torch.float32, torch.bfloat16)
    }


def test_cost_is_measured_in_tokens_and_pairs_of_tokens() -> None:
    cost = GraphCost.of((16, 64), (16 * 100 + 16 * 16 * 3, 64 * 100 + 64 * 64 * 3))
    assert (round(cost.by_token), round(cost.by_pair)) == (100, 3)
    assert cost.bytes(2, 10) == 2 * (1000 + 300)
    assert GraphCost.of((16, 64), (1600, 6400)).by_pair == 0


def test_a_pass_beyond_the_memory_is_refused_and_a_smaller_one_is_not(units: dict[torch.dtype, HostUnits]) -> None:
    with units[torch.float32].blocks.read():
        stage = FrozenStage(units[torch.float32].read(), 5, limit_bytes=1 << 20, max_positions=256)
        with pytest.raises(PassTooLargeError, match="at most 1 MiB here"):
            stage.forward(SPAN, torch.zeros(64, 256, 64))
        with pytest.raises(BadRequestError, match="at most 256 tokens, got 257"):
            stage.forward(SPAN, torch.zeros(1, 257, 64))
        flight = stage.forward(Span(2, 3), torch.zeros(1, 8, 64))
        assert 0 < stage.held_bytes <= 1 << 20
        stage.close()
        with pytest.raises(DrainingError, match="not served here any more"):
            stage.backward(flight, torch.zeros(1, 8, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_is_the_blocks_own_in_their_precision(dtype: torch.dtype, units: dict[torch.dtype, HostUnits]) -> None:
    hidden, of_output = torch.randn(2, 2, 9, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    stage = FrozenStage(units[dtype].read(), 5, limit_bytes=1 << 28)
    gradient = stage.backward(stage.forward(SPAN, hidden), of_output).input
    given = hidden.clone().requires_grad_()
    module = units[dtype].blocks.read().holding.cut(SPAN)
    assert gradient is not None and torch.equal(gradient, torch.autograd.grad(module(given), given, of_output)[0])
