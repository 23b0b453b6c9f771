"""Tells the stages of a run when to hold a version.

After a step, and before the next one is begun, all stages are at one version, so the trainer that closes the versions tells them to hold
it. Copying goes on while the run does. The next version follows when every stage is done and has dropped the older one, no sooner than
HOLD_EVERY_S, and so late that at most a tenth of the time is spent on copying: on a slow line the copies are older, but whole.
"""

from __future__ import annotations

import asyncio
import logging

from protocols import services
from protocols.errors import SwarmError
from protocols.held import Hold
from protocols.ids import short_peer
from protocols.kept import Kept
from protocols.records import PeerRecord
from swarm.clock import SYSTEM, Clock
from swarm.tasks import Tasks
from swarm.training.coordinator import Step
from swarm.training.members import Members

log = logging.getLogger(__name__)

HOLD_EVERY_S = 10.0
"""Seconds between two versions that are held, at least."""

PAUSES = 9
"""So many times as long as the copying took, the next one is waited for."""

ANSWER_S = 1.0
"""So long at most the next step waits until the stages have taken copies of their own units: a stage that is later may have stepped."""


class Copier:
    """Of one run, at the trainer that closes its versions."""

    def __init__(self, members: Members, clock: Clock = SYSTEM, every_s: float = HOLD_EVERY_S) -> None:
        """every_s: at least so many seconds between two versions that are held."""
        self._members, self._clock, self._every_s = members, clock, every_s
        self._began_s: float | None = None
        self._next_s = clock.now_s() + every_s
        self._tasks = Tasks()

    async def after(self, step: Step) -> None:
        """Have this version held, if it is time, and if some stage does not train all units. A stage that cannot is logged."""
        stages = self._members.stages
        held = [stage.status.held for stage in stages]
        if all(self._members.units <= stage.units.keys() for stage in stages):
            return
        if any(len(versions) > 1 or not all(one.is_done for one in versions) for versions in held):
            return
        now_s = self._clock.now_s()
        if self._began_s is not None:
            self._next_s = max(self._began_s + self._every_s, now_s + PAUSES * (now_s - self._began_s))
            self._began_s = None
        if now_s >= self._next_s:
            self._began_s = now_s
            await self._tell(Hold(run=self._members.run, kept=Kept(version=step.version, chains=step.chains)))

    async def stop(self) -> None:
        """Wait for no answer any more."""
        await self._tasks.stop()

    async def _tell(self, hold: Hold) -> None:
        message = hold.encode()
        told = [self._tasks.keep(self._call(stage.record, hold.kept.version, message), "hold") for stage in self._members.stages]
        if told:
            await asyncio.wait(told, timeout=ANSWER_S)

    async def _call(self, record: PeerRecord, version: int, message: bytes) -> None:
        try:
            channel = await self._members.pool.channel(record.peer, record.addresses, record.certificate)
            await channel.unary(services.HOLD, message)
        except SwarmError as error:
            log.info("version %d is not held by stage %s: %s", version, short_peer(record.peer), error)
