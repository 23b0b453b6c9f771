"""Steps a run from version to version: compute the batch, agree, apply.

The last receipt of a version (G6 of a gradient's path) is where its closing begins.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from protocols.averaging import Applied
from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.leases import Finished
from protocols.runs import RunSpec
from protocols.units import Unit
from swarm import measured, trace
from swarm.clock import Clock
from swarm.training.closing import Attempt, Closing
from swarm.training.lease_desk import LeaseDesk
from swarm.training.members import Members, progress_of
from swarm.training.recovery import Recovery
from swarm.training.where import Where, where

log = logging.getLogger(__name__)

CLOSE_AGAIN_S = 0.2
"""Seconds of pause after an attempt to close that failed without a missing micro-batch."""

LOOK_S = 1.0
"""Seconds between two looks at the stages while micro-batches are computed: has one gone, or another coordinator stepped the version?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One version that was applied."""

    version: int
    """After the step."""
    chains: Mapping[Unit, bytes]
    """Of every unit, at that version."""
    finished: Finished
    """What it came to."""


OnStep = Callable[[Step], Awaitable[None]]


class VersionMoved(Exception):
    """Another coordinator has stepped the version, or the stages cannot step it any more."""


class Coordinator:
    """The trainer that leases the micro-batches and closes the versions. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        members: Members,
        desk: LeaseDesk,
        closing: Closing,
        spec: RunSpec,
        clock: Clock,
        on_wait: Callable[[str], None] = lambda text: None,
        recovery: Recovery | None = None,
    ) -> None:
        """recovery: None = a version that no stage can step is waited for."""
        self._recovery = recovery
        self._members, self._desk, self._closing, self._clock = members, desk, closing, clock
        self._spec, self._on_wait = spec, on_wait

    async def run(self, until: int, on_step: OnStep, awaited: Collection[PeerId] = ()) -> None:
        """Step versions until the run is at `until`. It never gives up: cancel it.

        on_step: awaited after each step; its errors are raised. awaited: trainers that may have micro-batches in hand from an earlier
        coordinator.
        """
        is_settled = self._recovery is None
        while True:
            if self._recovery is not None and not is_settled:
                await self._recovery.settle()
                is_settled = True
            at = where(stages := await self._members.look())
            if at.version is None:
                has_some = f"every stage of {self._spec.name} fetches its state; waiting for one that has it"
                has_none = f"no stage of {self._spec.name} answers; waiting for one: swarm node --run {self._spec.name}"
                self._on_wait(has_some if stages else has_none)
                await asyncio.sleep(CLOSE_AGAIN_S)
                continue
            step = None
            try:
                if at.unfinished:
                    is_settled = False
                    await self._finish(at)
                elif at.version >= until:
                    return
                else:
                    step, awaited = await self._watched_step(at.version, awaited), ()
            except VersionMoved:
                is_settled = False
                log.info("%s: version %d was stepped by another trainer, or cannot be", self._spec.name, at.version)
            except SwarmError as error:
                is_settled = False
                self._on_wait(f"version {at.version} of {self._spec.name} is not applied everywhere: {error}")
                await asyncio.sleep(CLOSE_AGAIN_S)
            if step is not None:
                await on_step(step)

    async def _watched_step(self, version: int, awaited: Collection[PeerId]) -> Step:
        """As `step`; VersionMoved, too, if no step from this version is possible any more."""
        if self._recovery is None:
            return await self.step(version, awaited)
        stepping = asyncio.create_task(self.step(version, awaited), name=f"step {version}")
        stuck = asyncio.create_task(self._recovery.until_stuck(version), name="watch the step")
        try:
            await asyncio.wait({stepping, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if not stepping.done():
                stuck.result()
                raise VersionMoved
            return stepping.result()
        finally:
            for task in (stepping, stuck):
                task.cancel()
            await asyncio.gather(stepping, stuck, return_exceptions=True)

    async def step(self, version: int, awaited: Collection[PeerId] = ()) -> Step:
        """From `version` to `version` + 1, also if peers die meanwhile. It returns once every group has a member that has applied.

        VersionMoved. SwarmError: a group has lost all its members after it had agreed.
        """
        began_s, num_redone = self._clock.now_s(), 0
        progress = progress_of(self._members.stages, version, self._spec.num_micro_batches, self._members.num_blocks)
        self._desk.begin(version, progress.missing(), is_again=not progress.is_empty, awaited=awaited)
        while True:
            await self._computed(version)
            computed_s = self._clock.now_s()
            trace.mark_gradient("complete", version, trace.VERSION)
            measured.gradient("G6", computed_s - began_s)
            # units that a newcomer has fetched meanwhile step with the others, and so stay at the run's version
            attempt = await self._closing.attempt(version, await self._members.look())
            if attempt.is_whole:
                break
            num_redone += await self._after(version, attempt)
        applied = await self._closing.apply(version, attempt.agreed)
        return self._stepped(applied, began_s, computed_s, num_redone)

    def _stepped(self, applied: Applied, began_s: float, computed_s: float, num_redone: int) -> Step:
        desk, now_s = self._desk, self._clock.now_s()
        finished = Finished(
            version=applied.version, loss_sum=desk.loss_sum, num_targets=desk.num_targets, seconds=now_s - began_s,
            closing_s=now_s - computed_s, num_stages=len(self._members.stages), num_bytes=desk.num_bytes, num_redone=num_redone,
            grad_norm=_grad_norm(applied),
        )  # fmt: skip
        desk.finish(finished)
        return Step(version=applied.version, chains=applied.chains, finished=finished)

    async def _computed(self, version: int) -> None:
        """Wait until all micro-batches are reported. VersionMoved."""
        done = asyncio.ensure_future(self._desk.all_done())
        try:
            while not (await asyncio.wait([done], timeout=LOOK_S))[0]:
                await self._members.look()
                self._check(version)
            done.result()
        finally:
            done.cancel()
            await asyncio.gather(done, return_exceptions=True)

    async def _after(self, version: int, attempt: Attempt) -> int:
        """Some group has not agreed: what its sums lack is computed again; how many micro-batches that are. VersionMoved."""
        progress = progress_of(await self._members.look(), version, self._spec.num_micro_batches, self._members.num_blocks)
        self._check(version)
        for part, indices in attempt.missing.items():
            progress.correct(part, indices)
        missing = progress.missing()
        self._desk.redo(missing)
        if not missing:
            await asyncio.sleep(CLOSE_AGAIN_S)
        return len(missing)

    def _check(self, version: int) -> None:
        found = where(self._members.stages).version
        if found is not None and found > version:
            raise VersionMoved

    async def _finish(self, at: Where) -> None:
        """Some units have stepped, and the trainer that called `apply` has gone: the others have agreed, and step as well."""
        assert at.version is not None
        units, version = at.unfinished, at.version - 1
        attempt = await self._closing.attempt(version, self._members.stages, units)
        if attempt.agreed:
            await self._closing.apply(version, attempt.agreed)
        else:
            self._on_wait(f"{len(units)} units of {self._spec.name} are at version {version}, the others at {at.version}")
            await asyncio.sleep(CLOSE_AGAIN_S)


def _grad_norm(applied: Applied) -> float:
    return math.sqrt(sum(applied.squares.values())) / max(1, applied.num_targets)
