"""Recovery of a run whose stages have not all got its version.

The coordinating trainer calls `settle` before it steps. If the stages are new (all processes were killed), they are told to take a
checkpoint, and it waits. If all replicas of a unit are lost while others are ahead, it waits GRACE_S for one that may come back, and then
tells all stages to go back to the newest checkpoint. `until_stuck` watches a step for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from protocols import services
from protocols.errors import NoRouteError, SwarmError
from protocols.ids import short_peer
from protocols.kept import Kept, Restore
from swarm.clock import Clock
from swarm.training.members import Holder, Members, all_kept
from swarm.training.run_version import Going, Lost, Restoring, Verdict, judge

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""So long a unit may be without a stage at the run's version before all stages go back: one that was cut off may come back."""

HALF_APPLIED_S = 60.0
"""The same, if the stages of the unit may still apply the step that others have applied."""

LOOK_S = 0.5
"""Seconds between two looks while something is waited for."""

WATCH_S = 1.0
"""Seconds between two looks at whether a step can go on."""


class Recovery:
    """At one trainer. Belongs to one event loop."""

    def __init__(
        self,
        *,
        members: Members,
        clock: Clock,
        own_kept: Callable[[], Awaitable[Kept | None]],
        on_wait: Callable[[str], None],
        on_restore: Callable[[str], None],
    ) -> None:
        """own_kept: the newest checkpoint that this process keeps. on_restore: told when all stages are called back."""
        self._members, self._clock = members, clock
        self._own_kept, self._on_wait, self._on_restore = own_kept, on_wait, on_restore
        self._lost_since_s: float | None = None

    async def settle(self) -> None:
        """Return once the stages are where the coordinator can go on: it waits until there is a stage, until all of them have taken a
        checkpoint that is later than what they have, and, if a unit is lost, until all have gone back."""
        is_called_back = False
        while True:
            holders = await self._look()
            match await self._judge(holders):
                case None:
                    name = self._members.run.name
                    self._on_wait(f"no stage of {name} answers; waiting for one: swarm node --run {name}")
                case Going():
                    self._lost_since_s = None
                    return
                case Restoring(kept=kept):
                    self._on_wait(f"restoring version {kept.version}")
                    await self._call(kept, holders)
                case Lost() as lost:
                    self._lost_since_s = self._lost_since_s or self._clock.now_s()
                    is_late = self._clock.now_s() - self._lost_since_s >= _limit_s(lost)
                    if lost.kept is not None and (is_late or is_called_back):
                        if not is_called_back:
                            self._on_restore(f"all stages go back from version {lost.highest} to {lost.kept.version}: {lost}")
                        is_called_back = True
                        await self._call(lost.kept, holders)
                    elif lost.is_half_applied:
                        return  # those that are behind may apply what they have agreed on
                    else:
                        self._on_wait(f"{lost}; waiting for one that has a later one")
            await asyncio.sleep(LOOK_S)

    async def until_stuck(self, version: int) -> None:
        """Return if no step from this version is possible any more: other peers have brought the run elsewhere, or lost a unit."""
        covered_s = self._clock.now_s()
        while True:
            await asyncio.sleep(WATCH_S)
            if self._members.covers(version):
                covered_s = self._clock.now_s()
            elif self._clock.now_s() - covered_s >= GRACE_S:
                verdict = await self._judge(await self._look())
                if verdict not in (None, Going(version=version)):
                    return

    async def _look(self) -> list[Holder]:
        """All that answer; it waits until the directory can be asked for the first time."""
        while True:
            try:
                return await self._members.look_at_all()
            except NoRouteError as error:
                self._on_wait(f"{error}; trying again")
            await asyncio.sleep(LOOK_S)

    async def _judge(self, holders: list[Holder]) -> Verdict | None:
        kept = all_kept(holders, await self._own_kept())
        return judge([holder.units for holder in holders], kept, self._members.units)

    async def _call(self, kept: Kept, holders: list[Holder]) -> None:
        """Tell each stage that is not at this version; one that cannot take it is told again at the next look."""
        request = Restore(run=self._members.run, kept=kept).encode()

        async def tell(holder: Holder) -> None:
            record = holder.record
            try:
                channel = await self._members.pool.channel(record.peer, record.addresses, record.certificate)
                await channel.unary(services.RESTORE, request)
            except SwarmError as error:
                log.info("stage %s does not go to version %d yet: %s", short_peer(record.peer), kept.version, error)

        await asyncio.gather(*(tell(holder) for holder in holders if set(holder.units.values()) - {kept.version}))


def _limit_s(lost: Lost) -> float:
    """There is nothing to wait for if the checkpoint is as good as what the stages of the unit have."""
    is_newer = lost.kept is not None and lost.version > lost.kept.version
    return HALF_APPLIED_S if lost.is_half_applied and is_newer else GRACE_S
