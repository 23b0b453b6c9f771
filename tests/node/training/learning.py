"""Small runs over real checkpoints, with data that repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from node.runs.trainer.batch_source import drawn
from node.training.data.micro_batch import NO_TARGET, MicroBatch
from node.training.local import LocalRun
from node.training.stage import Stage
from protocols.ids import ModelId, Span
from protocols.runs import AveragingSpec, BatchRule, DataRule, OptimizerSpec, RunSpec, ScheduleSpec
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.training.pipeline import Drawn
from tests.node.training.staged import one_stage

RUN = ModelId("small", "ef" * 32)
T, WORDS = 16, 64
"""Tokens of a sequence; ids are below WORDS."""


def spec_of(steps: int, optimizer: str = "adamw", num_micro_batches: int = 4) -> RunSpec:
    return RunSpec(
        name=RUN.name, data=DataRule(digest="0" * 64, sequence_tokens=T),
        batch=BatchRule(steps=steps, batch_tokens=2 * T * num_micro_batches, micro_batch_sequences=2),
        optimizer=OptimizerSpec(name=optimizer, lr=3e-3, clip=1.0), schedule=ScheduleSpec(warmup_steps=5),
        averaging=AveragingSpec(deadline_s=10.0), checkpoint_every=0, serve_every=0,
    )  # fmt: skip


@dataclass(frozen=True)
class Counting:
    """`Batches`: sequences that count up by one or two, two documents in each sequence if packed."""

    num_micro_batches: int = 4
    is_packed: bool = True

    def micro_batch(self, version: int, index: int) -> MicroBatch:
        rng = np.random.default_rng([version, index])
        ids = np.stack([self._row(rng) for _ in range(2)]).astype(np.int32)
        positions = np.tile(np.r_[np.arange(6), np.arange(T - 6)], (2, 1)).astype(np.int32)
        labels = np.full_like(ids, NO_TARGET)
        labels[:, :-1] = ids[:, 1:]
        if self.is_packed:
            labels[:, 5] = NO_TARGET
        return MicroBatch(ids=ids, labels=labels, positions=positions if self.is_packed else None,
                          num_targets=int((labels != NO_TARGET).sum()), num_bytes=1)  # fmt: skip

    def _row(self, rng: np.random.Generator) -> Any:
        return (rng.integers(WORDS) + rng.integers(1, 3) * np.arange(T)) % WORDS

    def drawn(self, version: int, index: int) -> Drawn:
        return drawn(self.micro_batch(version, index))


def local_run(folder: Path, spec: RunSpec, batches: Counting) -> LocalRun:
    return LocalRun(RUN, spec, one_stage(folder), open_checkpoint(folder).num_blocks, batches)  # type: ignore[arg-type]


def stages_of(folder: Path, spans: Sequence[tuple[int, int]]) -> list[Stage]:
    """Each with embedding and head."""
    checkpoint = open_checkpoint(folder)
    return [
        Stage(
            load_parts(checkpoint, Span(*span), dtype=torch.float32)[1],
            load_ends(checkpoint, dtype=torch.float32),
            checkpoint.num_blocks,
        )
        for span in spans
    ]


def worst(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(one - other) / abs(other) for one, other in zip(losses, expected, strict=True))
