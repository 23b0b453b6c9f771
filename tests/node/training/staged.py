"""Stages over a tiny checkpoint, and their reference."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from node.training.flight import Gradients
from node.training.stage import Stage
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from family_configs import all_configurations  # noqa: E402
from gradient_check import IDS, LABELS, Measured, fault, staged_gradients, stages, whole_gradients  # noqa: E402

__all__ = [
    "IDS",
    "LABELS",
    "Measured",
    "all_configurations",
    "equal",
    "fault",
    "one_stage",
    "staged_gradients",
    "stages",
    "whole",
]


def one_stage(folder: Path, **options: object) -> Stage:
    """The whole model on one stage."""
    checkpoint = open_checkpoint(folder)
    _, parts = load_parts(checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32)
    return Stage(parts, load_ends(checkpoint, dtype=torch.float32), checkpoint.num_blocks, **options)  # type: ignore[arg-type]


def whole(folder: Path, cut: int) -> Measured:
    """What transformers and autograd say of the micro-batch of `gradient_check`."""
    return whole_gradients(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), cut)


def equal(one: Gradients, other: Gradients) -> bool:
    """The same names with the same bits."""
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(one.input, other.input)]
    for part in one.by_part:
        if one.by_part[part].keys() != other.by_part[part].keys():
            return False
        pairs += [(one.by_part[part][name], other.by_part[part][name]) for name in one.by_part[part]]
    is_same = [(a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs]
    return one.by_part.keys() == other.by_part.keys() and all(is_same)
