"""`swarm train --local`: a run in one process, with the same metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from node.events import OnEvent
from node.runs.opening import RunData, open_validation, read_data, reading
from node.runs.trainer.journal import Journal
from node.runs.trainer.sampler import SAMPLE_TOKENS
from node.training.data.batches import Batches
from node.training.initial import draw_checkpoint, manifest_of_base, manifest_of_run
from node.training.local import LocalRun, LocalStep
from node.training.metrics import EvaluationRow, MetricsFile, OnRow, VersionRow, mean_row
from node.training.optimizer.schedule import learning_rate
from node.training.spec.run_file import RunFile
from node.training.stage import Stage
from protocols.ids import ModelId, Span
from protocols.runs import RunSpec
from protocols.units import Blocks, Ends
from swarm.clock import SYSTEM, Clock
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.config import config_from_json
from swarm.models.loading import load_ends, load_parts
from swarm.places import expanded
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.waiting import FIRST_VERSION, READING_DATA, Waits, loading


def train_locally(
    file: RunFile,
    data_dir: Path,
    folder: Path,
    on_event: OnEvent,
    listeners: Sequence[OnRow] = (),
    clock: Clock = SYSTEM,
    waits: Waits | None = None,
) -> LocalRun:
    """Train from version 0 to the last one; blocks. Errors as of `read_data`, and NonFiniteGradientError."""
    waits = waits or Waits()
    with waits.on(READING_DATA) as progress:
        data = read_data(file, data_dir, reading(progress, on_event), is_needed=True)
    with waits.on(loading("version 0")):
        run = begin(data, data_dir, folder)
    with MetricsFile(folder) as metrics, LocalEvaluator(run, data, data_dir) as evaluator:
        journal = Journal(metrics, listeners, clock)
        while run.version < data.spec.batch.steps:
            started = clock.now_s()
            with waits.on(FIRST_VERSION) if run.version == 0 else contextlib.nullcontext():
                step = run.step()
            journal.write(row_of(step, data.spec, journal.time_s, clock.now_s() - started))
            if evaluator.is_due(step.version):
                journal.write(evaluator.row(journal.time_s))
    return run


class LocalEvaluator:
    """What `evaluator.Evaluator` is for the swarm. A context, which ends its tokenizer."""

    def __init__(self, run: LocalRun, data: RunData, data_dir: Path) -> None:
        """Blocks, until the validation data is read."""
        self._run, self._section, self._num_steps = run, data.file.evaluation, data.spec.batch.steps
        validation = open_validation(data, data_dir, lambda what, done, total: None)
        assert data.train is not None, "read with is_needed"
        self._batches = Batches.of(data.spec, data.train, validation)
        self._folder, self._sandbox = data.tokenizer, Sandbox(data.file.name)

    def is_due(self, version: int) -> bool:
        """Is this version evaluated?"""
        every = self._section.every_steps
        has_work = bool(self._section.samples or next(self._batches.validation(), None))
        return bool(every) and has_work and (version % every == 0 or version == self._num_steps)

    def row(self, time_s: float) -> EvaluationRow:
        """Of the run's version now."""
        loss_sum, num_targets, num_bytes = self._run.evaluate(self._batches.validation())
        samples: dict[str, str] = {}
        if self._section.samples:
            tokenizer = SandboxedTokenizer(self._sandbox, self._folder)
            for prompt in self._section.samples:
                samples[prompt] = tokenizer.decode(self._run.generate(tokenizer.encode(prompt), SAMPLE_TOKENS))
        return mean_row(self._run.version, loss_sum, num_targets, num_bytes, time_s, samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sandbox.close()


def begin(data: RunData, data_dir: Path, folder: Path) -> LocalRun:
    """The run at version 0. Blocks: of a run whose weights are drawn, they are drawn into `folder`."""
    place = data.file.model.checkpoint
    if place is not None:
        checkpoint, spec = open_checkpoint(expanded(place)), data.spec
        manifest = manifest_of_base(checkpoint, spec, data_dir / "digests")
    else:
        config = config_from_json(data.plan.raw_config, "model.config")
        manifest = manifest_of_run(config, data.spec, data.tokenizer)
        directory, num_blocks = folder / "version-0", len(data.plan.units) - 1
        draw_checkpoint(config, data.spec.seed, [Blocks(0, num_blocks), Ends()], directory)
        checkpoint = open_checkpoint(directory)
    return of_checkpoint(checkpoint, ModelId(data.file.name, manifest.digest), data)


def of_checkpoint(checkpoint: Checkpoint, model: ModelId, data: RunData) -> LocalRun:
    """A run whose version 0 is this checkpoint."""
    span = Span(0, checkpoint.num_blocks)
    training: Any = data.file.training
    parts = load_parts(checkpoint, span, dtype=torch.float32)[1]
    stage = Stage(
        parts, load_ends(checkpoint, dtype=torch.float32), checkpoint.num_blocks, recompute=training.recompute,
        compute=training.compute, max_positions=checkpoint.max_positions,
    )  # fmt: skip
    assert data.train is not None, "read with is_needed"
    return LocalRun(model, data.spec, stage, checkpoint.num_blocks, Batches.of(data.spec, data.train))


def row_of(step: LocalStep, spec: RunSpec, time_s: float, step_s: float) -> VersionRow:
    return VersionRow(
        version=step.version,
        tokens=step.version * spec.batch.batch_tokens,
        loss=step.loss_sum / max(1, step.num_targets),
        lr=learning_rate(spec.schedule, spec.optimizer.lr, step.version - 1, spec.batch.steps),
        grad_norm=step.grad_norm,
        time_s=time_s,
        tokens_per_s=spec.batch.batch_tokens / step_s,
        peers=1,
        bytes_sent=0,
        waiting_s=0.0,
        redone=0,
    )
