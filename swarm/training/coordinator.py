"""Steps a run from version to version: compute the batch, agree, apply.

The last receipt of a version (G6 of a gradient's path) is where its closing begins.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocols.averaging import Applied
from protocols.groups import indices_of
from protocols.parts_of_units import Part
from protocols.run_status import RunStatus
from protocols.runs import RunSpec
from protocols.units import Unit
from swarm import trace
from swarm.clock import Clock
from swarm.training.closing import Attempt, Closing
from swarm.training.members import Members, all_parts
from swarm.training.pipeline import Pipeline, Totals
from swarm.training.progress import Progress

log = logging.getLogger(__name__)

CLOSE_AGAIN_S = 0.2
"""Seconds of pause after an attempt to close that failed without a missing micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One version that was applied."""

    version: int
    """After the step."""
    chains: Mapping[Unit, bytes]
    """Of every unit, at that version."""
    grad_norm: float
    """Of the mean gradient of the whole model, before clipping."""
    totals: Totals
    num_stages: int
    seconds: float
    closing_s: float
    """Of these, from the last receipt until all had applied."""


class Coordinator:
    """The trainer that closes the versions."""

    def __init__(
        self,
        *,
        members: Members,
        pipeline: Pipeline,
        closing: Closing,
        spec: RunSpec,
        num_blocks: int,
        clock: Clock,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._members, self._pipeline, self._closing, self._clock = members, pipeline, closing, clock
        self._spec, self._num_blocks, self._on_wait = spec, num_blocks, on_wait

    async def version(self) -> int | None:
        """The version that the run is at: the lowest at which all stages could be, None while there is no stage.

        A stage that joined late is behind, and catches up by itself; so the version is the highest that any stage has.
        """
        stages = await self._members.look()
        versions = [unit.version for stage in stages for unit in stage.units.values()]
        return max(versions, default=None)

    async def step(self, version: int) -> Step:
        """From `version` to `version` + 1, whatever dies meanwhile. It returns once every group has a member that has applied."""
        began_s, totals = self._clock.now_s(), Totals()
        progress = await self._adopt(version)
        while True:
            await self._pipeline.compute(version, progress.missing(), progress, totals)
            computed_s = self._clock.now_s()
            trace.mark_gradient("complete", version, trace.VERSION)
            attempt = await self._closing.attempt(version, [one for one in self._members.stages if one.is_at(version)])
            if attempt.is_whole:
                break
            await self._after(attempt, progress, totals)
        applied = await self._closing.apply(version, attempt.agreed)
        stages = await self._members.look()
        now_s = self._clock.now_s()
        return Step(
            version=version + 1, chains=applied.chains, grad_norm=_grad_norm(applied), totals=totals, num_stages=len(stages),
            seconds=now_s - began_s, closing_s=now_s - computed_s,
        )  # fmt: skip

    async def _adopt(self, version: int) -> Progress:
        """What the ledgers hold of this version already: work of a trainer that has gone, or of this one before it was restarted."""
        progress = Progress(self._spec.num_micro_batches, all_parts(self._num_blocks))
        for stage in await self._members.look():
            for unit in stage.units.values():
                if unit.version == version:
                    for part, bitmap in unit.ledger.items():
                        for index in indices_of(int.from_bytes(bitmap, "little")):
                            progress.add(index, stage.peer, [part])
        return progress

    async def _after(self, attempt: Attempt, progress: Progress, totals: Totals) -> None:
        """Some group has not agreed: what its sums lack is computed again."""
        for peer in attempt.lost:
            if await self._members.ask_again(peer) is None:
                progress.lose(peer)
        for part, indices in attempt.missing.items():
            progress.correct(part, indices)
        missing = progress.missing()
        totals.num_redone += len(missing)
        if not missing:
            await asyncio.sleep(CLOSE_AGAIN_S)
            await self._members.look()


def _grad_norm(applied: Applied) -> float:
    return math.sqrt(sum(applied.squares.values())) / max(1, applied.num_targets)


def held(status: RunStatus) -> dict[Part, set[int]]:
    """The indices in the sums of each part of a stage."""
    return {
        part: set(indices_of(int.from_bytes(bitmap, "little"))) for unit in status.units for part, bitmap in unit.ledger.items()
    }
