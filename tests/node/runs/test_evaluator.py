"""Evaluations beside a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.runs.trainer.batch_source import drawn
from node.runs.trainer.evaluator import Evaluator
from node.runs.trainer.journal import Journal
from node.runs.trainer.sampler import whole_letters
from node.training.data.micro_batch import MicroBatch
from node.training.metrics import FILE, MetricsFile
from node.training.spec.run_file import EvaluationSection
from protocols.errors import DiskFullError
from protocols.leases import Finished
from swarm.clock import SYSTEM
from swarm.training.coordinator import Step
from swarm.training.evaluation import Evaluated
from swarm.training.pipeline import Drawn


class Loss:
    async def loss(self, version: int, source: Iterator[tuple[Drawn, int]], limit_s: float) -> Evaluated:
        return Evaluated(loss_sum=2.0, num_targets=1, num_bytes=4, num_passes=1, is_whole=True)


class Samples:
    async def sample(self, prompt: str) -> str:
        return prompt


def no_batches() -> Iterator[MicroBatch]:
    return iter(())


async def test_a_full_disk_is_told_though_the_line_was_written_beside_the_run(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to("/dev/full")
    finished = Finished(version=1, loss_sum=0, num_targets=1, seconds=1, closing_s=0, num_stages=1, num_bytes=0, num_redone=0)
    with MetricsFile(tmp_path) as metrics:
        journal = Journal(metrics, (), SYSTEM)
        evaluator = Evaluator(
            EvaluationSection(every_steps=1, samples=("a",)), 9, Loss(), no_batches, drawn, Samples(), journal, print
        )
        await evaluator.after(Step(version=1, chains={}, finished=finished))
        with pytest.raises(DiskFullError):
            await evaluator.finish()


def test_a_sample_that_is_cut_off_has_no_half_letter_at_its_end() -> None:
    text = b"caf\xc3\xa9 \xe2\x82".decode(errors="replace")
    assert whole_letters(text, is_cut=True) == "café " and whole_letters(text, is_cut=False) == text
    assert whole_letters("café", is_cut=True) == "café"
