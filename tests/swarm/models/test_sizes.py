"""Sizes told before loading are the sizes found after it."""

from __future__ import annotations

import pytest
import torch

from node.engines.engine import choose_engine
from protocols.ids import Span
from protocols.units import Blocks
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from swarm.models.sizes import kv_bytes_per_token, unit_bytes
from tests.families import Checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "bloom", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_span_are_those_of_its_parameters(checkpoints: Checkpoints, family: str, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(checkpoints(family))
    parameters = load_span(checkpoint, Span(1, 4), dtype=dtype).layers.parameters()
    assert unit_bytes(checkpoint, Blocks(1, 4), dtype) == pytest.approx(
        sum(p.numel() for p in parameters) * dtype.itemsize, rel=0.01
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt", "deepseek_v3", "gemma3_text", "gemma4_text", "gpt_oss"])
def test_kv_bytes_are_those_that_a_packed_engine_takes(checkpoints: Checkpoints, family: str) -> None:
    checkpoint = open_checkpoint(checkpoints(family))
    engine = choose_engine(load_span(checkpoint, Span(0, 3), dtype=torch.float32), 1 << 30)
    assert engine.mode == "packed"
    growth = engine.growth_bytes([(engine.open(), 1_000)])
    capacity = 1_536  # half as much again, in steps of 64
    assert growth == capacity * kv_bytes_per_token(checkpoint.config, Span(0, 3), torch.float32)
