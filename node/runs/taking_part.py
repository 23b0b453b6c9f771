"""Keeps a node's units at the version of the others.

    await part.begin()          parameters and optimizer state of others
    await part.keep_up()        until cancelled: whenever others are ahead, their state is fetched

A unit's state comes from any peer that has a later version of it: a replica, or a keeper of checkpoints. While it is fetched the stage
takes no micro-batch; the run goes on without it. Units that have come step with the others meanwhile, so the download of all of them may
take longer than a version, but not that of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Protocol

from node.device.training_time import Priority
from node.events import Event, OnEvent
from node.training.run_units import RunUnits
from node.training.trained_stage import TrainedStage
from protocols.errors import NoRouteError, SwarmError
from protocols.kept import Kept
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm.training.members import Holder, Members
from swarm.training.run_version import reach
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, same_form

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks at whether other peers are ahead; a group that finds us behind says so at once."""

AGAIN_S = 0.5
"""Seconds until a fetch that failed is tried again."""


class OwnKeeper(Protocol):
    """Checkpoints that this process keeps itself (`keeping.py`)."""

    async def kept(self) -> Kept | None: ...

    async def take(self, unit: Unit, version: int | None) -> UnitSnapshot: ...


class TakingPart:
    """Keeps the units of one run at the version of the others. Belongs to one event loop."""

    def __init__(
        self,
        units: RunUnits,
        trained: TrainedStage,
        members: Members,
        on_event: OnEvent,
        on_fetched: Callable[[Unit], None],
        keeper: OwnKeeper | None = None,
    ) -> None:
        """on_fetched: told of each unit that has become what others have. keeper: None = this process keeps no checkpoints."""
        self._units, self._trained, self._members, self._on_event = units, trained, members, on_event
        self._keeper, self._on_fetched = keeper, on_fetched
        self._is_behind, self._fetching = asyncio.Event(), asyncio.Lock()

    @property
    def versions(self) -> dict[Unit, int]:
        """Of the units here."""
        return {unit: state.version for unit, state in self._units.states.items()}

    async def look(self) -> list[Holder]:
        """What the other peers have."""
        return await self._members.look_at_all()

    async def own_kept(self) -> Kept | None:
        """The newest checkpoint that this process keeps."""
        return None if self._keeper is None else await self._keeper.kept()

    def fall_behind(self) -> None:
        """A group has found that others are ahead: look now."""
        self._is_behind.set()

    async def begin(self) -> None:
        """Return once each unit has been fetched that others are ahead of. If they have gone on meanwhile, `keep_up` fetches again."""
        self._trained.is_catching_up, num_rounds = True, 0
        while self._trained.is_catching_up and num_rounds < 2:  # in the second one there is mostly nothing to fetch
            try:
                self._trained.is_catching_up = not await self._is_level()
                num_rounds += 1
            except NoRouteError as error:
                if not self._is_behind.is_set():
                    self._on_event(Event("waiting", f"{error}; trying again"))
                self._is_behind.set()
                await asyncio.sleep(AGAIN_S)
        if self._trained.is_catching_up:
            self._is_behind.set()

    async def _is_level(self) -> bool:
        """Fetch what others have of later versions. Was there nothing? NoRouteError if a state cannot be had from any of them."""
        async with self._fetching:
            holders, own = await self.look(), await self.own_kept()
            limit = self._limit(holders, own)
            is_restored = await self._restore_own(own, limit)
            wanted = self._wanted(holders, limit)
            if wanted:
                with self._taking_none():
                    await self._fetch(wanted)
            return not wanted and not is_restored

    async def go_to(self, kept: Kept, sources: Sequence[PeerRecord], why: str) -> None:
        """Take all units of this version, from here or these keepers, also if ours are later. Errors as of `_is_level`."""
        async with self._fetching:
            before = self.versions
            odd = [unit for unit, version in before.items() if version != kept.version]
            if not odd:
                return
            with self._taking_none():
                if await self.own_kept() == kept:
                    await self._from_own(odd, kept.version)
                else:
                    wanted = [self._of(unit, sources, kept.version, kept.chains[unit]) for unit in odd]
                    async with aclosing(download(self._members.pool, self._units.run, wanted)) as found:
                        async for snapshot in found:
                            await self._take(snapshot, is_newer=False)
        how = "went back" if max(before.values()) > kept.version else "restored"
        text = f"{how} to version {kept.version} from {max(before.values())}: {len(odd)} units, as {why} asked"
        self._on_event(Event("restored", text))

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
                while not await self._is_level():
                    pass
                self._trained.is_catching_up = False
            except SwarmError as error:
                log.warning("%s: the state of others cannot be fetched: %s; trying again", self._units.run.name, error)
                await asyncio.sleep(AGAIN_S)

    def _limit(self, holders: Sequence[Holder], own: Kept | None) -> int:
        """The latest version that is of use here."""
        kept = [one for one in (own, *(holder.kept for holder in holders)) if one is not None]
        return reach([self.versions, *(holder.units for holder in holders)], kept, self._members.units) + 1

    def _wanted(self, holders: Sequence[Holder], limit: int) -> list[Wanted]:
        """The units of which some peer has a later version, with the peers that have the latest: stages, or else keepers."""
        wanted = []
        for unit, state in self._units.states.items():
            live = {one.record: one.units[unit] for one in holders if state.version < one.units.get(unit, 0) <= limit}
            kept = {one.record: one.kept.version for one in holders if one.kept and state.version < one.kept.version <= limit}
            newest = max((*live.values(), *kept.values()), default=0)
            if stages := [record for record, version in live.items() if version == newest]:
                wanted.append(self._of(unit, stages))
            elif keepers := [record for record, version in kept.items() if version == newest]:
                wanted.append(self._of(unit, keepers, newest))
        return wanted

    def _of(self, unit: Unit, sources: Sequence[PeerRecord], version: int | None = None, chain: bytes | None = None) -> Wanted:
        return Wanted(unit=unit, version=version, chain=chain, check=same_form(self._units.form(unit)), sources=sources)

    async def _restore_own(self, own: Kept | None, limit: int) -> bool:
        """Take what is later in our own checkpoint. Was there anything?"""
        units = [unit for unit, version in self.versions.items() if own is not None and version < own.version <= limit]
        if own is None or not units:
            return False
        with self._taking_none():
            await self._from_own(units, own.version)
        self._on_event(Event("restored", f"version {own.version} of {len(units)} units from the checkpoint kept here"))
        return True

    async def _from_own(self, units: Sequence[Unit], version: int) -> None:
        assert self._keeper is not None
        for unit in units:
            await self._take(await self._keeper.take(unit, version), is_newer=False)

    @contextlib.contextmanager
    def _taking_none(self) -> Iterator[None]:
        """No micro-batch is taken within."""
        before, self._trained.is_catching_up = self._trained.is_catching_up, True
        try:
            yield
        finally:
            self._trained.is_catching_up = before

    async def _fetch(self, wanted: Sequence[Wanted]) -> None:
        versions = set()
        async with aclosing(download(self._members.pool, self._units.run, wanted)) as found:
            async for snapshot in found:
                await self._take(snapshot)
                versions.add(snapshot.version)
        if versions:
            self._on_event(Event("training", f"fetched version {max(versions)} of {len(wanted)} units from others"))

    async def _take(self, snapshot: UnitSnapshot, *, is_newer: bool = True) -> None:
        """is_newer: unless a step has brought us farther meanwhile."""

        def restore() -> bool:
            is_wanted = not is_newer or snapshot.version > self._units.states[snapshot.unit].version
            if is_wanted:
                self._units.restore(snapshot)
            return is_wanted

        if await self._units.device.run(restore, Priority.UPDATE):
            self._on_fetched(snapshot.unit)
