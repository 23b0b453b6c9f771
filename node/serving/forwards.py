"""Forwards of one host: grouped by engine, counted, repeated if they fail.

A step that fails takes no other step with it: a batch that fails as a whole is run again, each step alone, and only the steps that fail
alone get the error. Exception: a step cannot be run again if the failed forward has changed a running state (`step.rewind`).
All functions run in the device's thread; the numbers may be read from any thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from node.device.memory import Memory
from node.device.pending import Pending
from node.hardware import wait_for
from node.serving import step as steps
from node.serving.part_engines import PartEngines
from node.serving.step import Batch
from swarm import trace
from swarm.inference.hop.compute import Output

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine

log = logging.getLogger(__name__)


class Forwards:
    """Runs batches through the engines of one host."""

    def __init__(
        self, engines: PartEngines, ends: Ends | None, memory: Memory, fail: Callable[[Pending, Exception], None]
    ) -> None:
        """fail: called at once for a step that fails alone: it must give the memory of its session back."""
        self._engines, self._ends, self._memory, self._fail = engines, ends, memory, fail
        self.num_forwards = 0
        self.num_steps = 0
        self.largest_batch = 0
        """Most steps that ever shared a forward."""
        self.step_ms = 0.0
        """Moving average of a forward's milliseconds, through all blocks."""

    def run(self, entered: Batch) -> tuple[Batch, list[Output]]:
        """One forward for all steps of the same blocks. Returns the members of the batch that succeeded, and the output of each."""
        groups: dict[Engine, Batch] = {}
        for chunk, rows in entered:
            groups.setdefault(self._engines.of(chunk.step.session), []).append((chunk, rows))
        succeeded: Batch = []
        outputs: list[Output] = []
        for engine, batch in groups.items():
            lengths = [[row.length for row in rows] for _, rows in batch]
            try:
                made = self._forward(engine, batch)
            except Exception as error:  # whatever an engine raises here
                if len(batch) > 1:
                    log.info("a forward of %d steps failed, so each is run again alone", len(batch), exc_info=error)
                batch, made = self._one_by_one(engine, batch, lengths, error)
            succeeded += batch
            outputs += made
        return succeeded, outputs

    def _forward(self, engine: Engine, batch: Batch) -> list[Output]:
        started = time.perf_counter()
        for chunk, _ in batch:
            if not chunk.at:
                trace.mark("computing", chunk.step.session.id, -1)
        self._memory.lend(engine)
        outputs = steps.forward(engine, self._ends, batch)
        # If no output of a prefill chunk is wanted, nothing has waited for it yet; but its time is measured for the schedule.
        wait_for(engine.device)
        self._count(len(batch), (time.perf_counter() - started) * 1e3, is_whole=engine is self._engines.whole)
        for chunk, _ in batch:
            if chunk.is_last:
                trace.mark("forwarded", chunk.step.session.id, -1)
        return outputs

    def _one_by_one(self, engine: Engine, batch: Batch, lengths: list[list[int]], error: Exception) -> tuple[Batch, list[Output]]:
        """The batch failed: run its steps again, each alone, from the lengths before. Those that succeed, and their outputs."""
        if len(batch) == 1:
            self._fail(batch[0][0].pending, error)
            return [], []
        succeeded: Batch = []
        outputs = []
        for (chunk, rows), before in zip(batch, lengths, strict=True):
            try:
                steps.rewind(engine, rows, before)
                outputs += self._forward(engine, [(chunk, rows)])
                succeeded.append((chunk, rows))
            except Exception as own:
                self._fail(chunk.pending, own)
        return succeeded, outputs

    def _count(self, num_steps: int, ms: float, *, is_whole: bool) -> None:
        self.num_forwards += 1
        self.num_steps += num_steps
        self.largest_batch = max(self.largest_batch, num_steps)
        if is_whole:
            self.step_ms = 0.9 * self.step_ms + 0.1 * ms if self.step_ms else ms
