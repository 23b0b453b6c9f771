"""Keeps a node's units at the version of the others.

    await part.catch_up()       parameters and optimizer state of the run's newest version
    await part.keep_up()        until cancelled: whenever others are ahead, their state is fetched

A unit's state comes from any peer that has a later version of it: a replica, or a keeper of checkpoints. While it is fetched the stage
takes no micro-batch; the run goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from node.device.training_time import Priority
from node.events import Event, OnEvent
from node.training.run_units import RunUnits
from node.training.trained_stage import TrainedStage
from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm.rpc.pool import ChannelPool
from swarm.training.members import Members
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, same_form

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks at whether other peers are ahead; a group that finds us behind says so at once."""

AGAIN_S = 0.5
"""Seconds until a fetch that failed is tried again."""


class TakingPart:
    """Keeps the units of one run at the version of the others. Belongs to one event loop."""

    def __init__(
        self,
        units: RunUnits,
        trained: TrainedStage,
        members: Members,
        pool: ChannelPool,
        me: PeerId,
        on_event: OnEvent,
        on_fetched: Callable[[Unit], None],
    ) -> None:
        """on_fetched: told of each unit that has become what others have."""
        self._units, self._trained, self._members, self._pool, self._me = units, trained, members, pool, me
        self._on_event, self._on_fetched = on_event, on_fetched
        self._is_behind = asyncio.Event()

    def fall_behind(self) -> None:
        """A group has found that others are ahead: look now."""
        self._is_behind.set()

    async def catch_up(self) -> None:
        """Fetch what others have of later versions, until no peer is ahead. NoRouteError if a state cannot be had from any of them."""
        while wanted := self._wanted(await self._members.look_at_all()):
            self._trained.is_catching_up = True
            try:
                await self._fetch(wanted)
            finally:
                self._trained.is_catching_up = False

    async def keep_up(self) -> None:
        """Catch up whenever others are ahead, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._is_behind.wait()
            except TimeoutError:
                pass
            self._is_behind.clear()
            try:
                await self.catch_up()
            except SwarmError as error:
                log.warning("%s: the state of others cannot be fetched: %s; trying again", self._units.run.name, error)
                await asyncio.sleep(AGAIN_S)

    def _wanted(self, others: Mapping[PeerRecord, Mapping[Unit, int]]) -> list[Wanted]:
        """The units of which some peer has a later version, with the peers that have the latest."""
        wanted = []
        for unit, state in self._units.states.items():
            versions = {record: units[unit] for record, units in others.items() if unit in units and record.peer != self._me}
            newest = max(versions.values(), default=0)
            if newest > state.version:
                sources = [record for record, version in versions.items() if version == newest]
                wanted.append(Wanted(unit=unit, version=None, check=same_form(self._units.form(unit)), sources=sources))
        return wanted

    async def _fetch(self, wanted: Sequence[Wanted]) -> None:
        versions = set()
        async with aclosing(download(self._pool, self._units.run, wanted)) as found:
            async for snapshot in found:
                await self._take(snapshot)
                versions.add(snapshot.version)
        if versions:
            self._on_event(Event("training", f"fetched version {max(versions)} of {len(wanted)} units from others"))

    async def _take(self, snapshot: UnitSnapshot) -> None:
        """Unless a step has brought us farther meanwhile."""

        def restore() -> bool:
            is_later = snapshot.version > self._units.states[snapshot.unit].version
            if is_later:
                self._units.restore(snapshot)
            return is_later

        if await self._units.device.run(restore, Priority.UPDATE):
            self._on_fetched(snapshot.unit)
