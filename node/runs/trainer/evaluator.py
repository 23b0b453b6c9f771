"""Evaluates a run now and then: validation loss, and samples of text.

The loss is computed on the weights in training, between two steps, and the run waits for it (at most EVALUATION_S). Samples come from the
version that is served, while the run goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from node.events import Event, OnEvent
from node.runs.trainer.journal import Journal
from node.training.data.micro_batch import MicroBatch
from node.training.metrics import mean_row
from node.training.spec.run_file import EvaluationSection
from protocols.errors import SwarmError
from swarm.tasks import Tasks
from swarm.training.coordinator import Step
from swarm.training.evaluation import Evaluated
from swarm.training.pipeline import Drawn

log = logging.getLogger(__name__)

EVALUATION_S = 60.0
"""Seconds that the run waits for one evaluation. If the validation data is too much for it, what was reached is evaluated from then on."""

SAMPLES_S = 60.0
"""Seconds for all samples of one evaluation."""


class Loss(Protocol):
    """`swarm.training.evaluation.Evaluation.loss`."""

    async def loss(self, version: int, source: Iterator[tuple[Drawn, int]], limit_s: float) -> Evaluated: ...


class Samples(Protocol):
    """Continues prompts."""

    async def sample(self, prompt: str) -> str:
        """What the model says after it. SwarmError if it cannot be had."""


class Evaluator:
    """Of one run, at the trainer that closes its versions. `after` is told each step; `finish` or `stop` at the end."""

    def __init__(
        self,
        section: EvaluationSection,
        num_steps: int,
        loss: Loss,
        validation: Callable[[], Iterator[MicroBatch]],
        drawn: Callable[[MicroBatch], Drawn],
        samples: Samples,
        journal: Journal,
        on_event: OnEvent,
    ) -> None:
        """num_steps: of the run; its last version is evaluated, too. validation: the micro-batches from the first one."""
        self._section, self._num_steps = section, num_steps
        self._loss, self._validation, self._drawn, self._samples = loss, validation, drawn, samples
        self._journal, self._on_event = journal, on_event
        self._most: int | None = None
        """Micro-batches that one evaluation reaches; None = all."""
        self._tasks = Tasks()
        self._sampling: asyncio.Task[None] | None = None

    async def after(self, step: Step) -> None:
        """Evaluate this version, if it is one of those. What fails is told as a warning, and the run goes on."""
        every = self._section.every_steps
        if not every or (step.version % every and step.version != self._num_steps):
            return
        try:
            found = await self._evaluated(step.version)
        except SwarmError as error:
            self._on_event(Event("warning", f"version {step.version} is not evaluated: {error}"))
            return
        await self.finish()  # of the evaluation before
        self._sampling = self._tasks.keep(self._sample(step.version, found, self._journal.time_s), "samples")

    async def finish(self) -> None:
        """Wait for the samples that are under way. DiskFullError if they could not be written."""
        if self._sampling is not None:
            await asyncio.shield(self._sampling)

    async def stop(self) -> None:
        """Cancel what is under way."""
        await self._tasks.stop()

    async def _evaluated(self, version: int) -> Evaluated:
        source = ((self._drawn(one), one.num_bytes) for one in itertools.islice(self._validation(), self._most))
        found = await self._loss.loss(version, source, EVALUATION_S)
        if not found.is_whole:
            self._most = found.num_passes
            log.warning("%d micro-batches of validation data fit into %.0f s", found.num_passes, EVALUATION_S)
        return found

    async def _sample(self, version: int, found: Evaluated, time_s: float) -> None:
        samples: dict[str, str] = {}
        try:
            async with asyncio.timeout(SAMPLES_S):
                for prompt in self._section.samples:
                    samples[prompt] = await self._samples.sample(prompt)
        except (SwarmError, TimeoutError) as error:
            reason = str(error) or f"not done within {SAMPLES_S:.0f} s"
            self._on_event(Event("warning", f"no sample of version {version}: {reason}"))
        if found.num_targets or samples:
            self._journal.write(mean_row(version, found.loss_sum, found.num_targets, found.num_bytes, time_s, samples))
