"""Parts of a loaded span equal those blocks loaded alone.

They do so bit for bit, over the same tensors.
"""

from __future__ import annotations

import pytest
import torch

from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_parts, load_span
from tests.families import LISTED, OTHERS, Checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@torch.inference_mode()
@pytest.mark.parametrize("family", [*LISTED, *OTHERS])
def test_a_part_is_bit_for_bit_what_loading_those_blocks_gives(checkpoints: Checkpoints, family: str) -> None:
    checkpoint = open_checkpoint(checkpoints(family))
    whole, parts = load_parts(checkpoint, Span(1, checkpoint.num_blocks), dtype=torch.float32)
    hidden = torch.randn(1, 9, whole.hidden_size, generator=torch.Generator().manual_seed(1))
    before = whole(hidden)
    for part in (Span(1, 3), Span(2, 4), Span(3, 4)):
        cut, alone = parts.cut(part), load_span(checkpoint, part, dtype=torch.float32)
        assert len(cut.layers) == len(part)
        assert torch.equal(cut(hidden), alone(hidden))
        assert str(cut.config) == str(alone.config)  # caches and masks are made from it
        assert {p.data_ptr() for p in cut.layers.parameters()} <= {p.data_ptr() for p in whole.layers.parameters()}
    assert torch.equal(whole(hidden), before)
