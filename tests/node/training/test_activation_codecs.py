"""Hidden states and gradients sent in fewer bytes train as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from node.training.stage import Stage
from protocols import compression
from protocols.ids import Span
from protocols.tensors import CODECS
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from tests.families import make_checkpoint

STEPS = 30


def losses(folder: Path, codec: str) -> list[float]:
    """Of two stages with `codec` between them, trained on one batch again and again."""
    checkpoint = open_checkpoint(folder)
    spans = (Span(0, 1), Span(1, checkpoint.num_blocks))
    first, last = (
        Stage(
            load_parts(checkpoint, span, dtype=torch.float32)[1],
            load_ends(checkpoint, dtype=torch.float32),
            checkpoint.num_blocks,
        )
        for span in spans
    )
    ids = torch.randint(3, 60, (4, 24), generator=torch.Generator().manual_seed(3))
    labels = torch.cat([ids[:, 1:], torch.full((4, 1), -100)], dim=1)
    optimizer = torch.optim.AdamW(
        [leaf for stage in (first, last) for unit in stage.units for leaf in stage.parameters(unit).values()], 3e-3
    )
    found = []
    for _ in range(STEPS):
        above = first.forward(spans[0], ids)
        assert above.output is not None
        below = last.forward(spans[1], compression.unpack(compression.pack(above.output, codec)), labels=labels)
        found.append(below.loss_sum / below.num_targets)
        gradients = last.backward(below)
        assert gradients.input is not None
        own = first.backward(above, compression.unpack(compression.pack(gradients.input, codec)))
        for stage, parts in ((first, own), (last, gradients)):
            for part, by_name in parts.by_part.items():
                for name, gradient in by_name.items():
                    stage.parameters(part.unit)[name].grad = gradient / below.num_targets  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_thirty_steps_by_every_codec_reach_nearly_the_same_loss(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    by_codec = {codec: losses(folder, codec) for codec in CODECS}
    exact = by_codec["none"]
    assert exact[-1] < exact[0] / 2, "the loss falls"
    for codec, found in by_codec.items():
        print(codec, found[0], found[-1], found[-1] / exact[-1] - 1)
        assert found[0] == pytest.approx(exact[0], rel=2e-3)
        assert found[-1] == pytest.approx(exact[-1], rel=0.02)
