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
from node.runs.stage.holding import Holding
from node.training.run_units import RunUnits
from node.training.trained_stage import TrainedStage
from protocols.errors import NoRouteError, SwarmError
from protocols.kept import Kept
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm.clock import SYSTEM, Clock
from swarm.training.members import Holder, Members, all_kept
from swarm.training.run_version import reach
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, same_form

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks at whether other peers are ahead; a group that finds us behind says so at once."""

AGAIN_S = 0.5
"""Seconds until a fetch that failed is tried again."""

LEFT_BEHIND_S = 10.0
"""So long a stage that a group has left behind takes no micro-batch, if no peer has a later version yet: its side of a fork does not go on,
and what it adds is lost. Afterwards it takes some again, since the other side may have died."""


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
        holding: Holding | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """on_fetched: told of each unit that has become what others have. keeper: None = this process keeps no checkpoints. holding: the
        versions that it holds in memory; None = none."""
        self._units, self._trained, self._members, self._on_event = units, trained, members, on_event
        self._keeper, self._holding, self._on_fetched, self._clock = keeper, holding, on_fetched, clock
        self._is_behind, self._fetching = asyncio.Event(), asyncio.Lock()
        self._left_at, self._waits_until_s = -1, 0.0

    @property
    def versions(self) -> dict[Unit, int]:
        """Of the units here."""
        return {unit: state.version for unit, state in self._units.states.items()}

    async def look(self) -> list[Holder]:
        """What the other peers have."""
        return await self._members.look_at_all()

    async def kept(self, holders: Sequence[Holder]) -> list[Kept]:
        """The versions of which all units can be had from these peers and this process, those here among them."""
        found = all_kept(holders, await self._own_kept(), () if self._holding is None else self._holding.held)
        return [one for one in found if self._units.states.keys() <= one.chains.keys()]

    def fall_behind(self, version: int) -> None:
        """A group that closes this version goes on without the units here: others are ahead, or on the side of a fork that goes on. Take no
        micro-batch until their next version is here, or LEFT_BEHIND_S."""
        if version != self._left_at:
            self._left_at, self._waits_until_s = version, self._clock.now_s() + LEFT_BEHIND_S
        self._trained.is_catching_up = self._is_left()
        self._is_behind.set()

    def _is_left(self) -> bool:
        """Some unit here has no later version than the one at which a group has left it."""
        return min(self.versions.values()) <= self._left_at and self._clock.now_s() < self._waits_until_s

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
            holders, own = await self.look(), await self._own_kept()
            kept = await self.kept(holders)
            limit = reach([self.versions, *(holder.units for holder in holders)], kept, self._members.units) + 1
            is_restored = await self._restore_own(own, limit)
            wanted = self._wanted(holders, kept, limit)
            if wanted:
                with self._taking_none():
                    await self._fetch(wanted)
            return not wanted and not is_restored

    async def go_to(self, kept: Kept, holders: Sequence[Holder], why: str) -> None:
        """Take all units of this version, from here or these peers, also if ours are later. Errors as of `_is_level`."""
        async with self._fetching:
            before = self.versions
            odd = [unit for unit, version in before.items() if version != kept.version]
            if not odd:
                return
            with self._taking_none():
                others = [unit for unit in odd if not await self._take_own(unit, kept)]
                wanted = [self._kept_of(unit, kept, holders) for unit in others]
                async with aclosing(download(self._members.pool, self._units.run, wanted)) as found:
                    async for snapshot in found:
                        await self._take(snapshot, is_newer=False)
            if self._holding is not None:
                self._holding.go_back(kept.version)
        how = "went back" if max(before.values()) > kept.version else "restored"
        text = f"{how} to version {kept.version} from {max(before.values())}: {len(odd)} units, as {why} asked"
        self._on_event(Event("restored", text))

    async def keep_up(self) -> None:
        """Catch up whenever others are ahead, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(AGAIN_S if self._is_left() else LOOK_S):
                    await self._is_behind.wait()
            except TimeoutError:
                pass
            self._is_behind.clear()
            try:
                while not await self._is_level():
                    pass
                self._trained.is_catching_up = self._is_left()
            except SwarmError as error:
                log.warning("%s: the state of others cannot be fetched: %s; trying again", self._units.run.name, error)
                await asyncio.sleep(AGAIN_S)

    async def _own_kept(self) -> Kept | None:
        """The newest checkpoint that this process keeps."""
        return None if self._keeper is None else await self._keeper.kept()

    def _wanted(self, holders: Sequence[Holder], kept: Sequence[Kept], limit: int) -> list[Wanted]:
        """The units of which some peer has a later version, with the peers that have the latest: stages, or else those that keep it."""
        best = max((one for one in kept if one.version <= limit), key=lambda one: one.version, default=None)
        wanted = []
        for unit, state in self._units.states.items():
            live = {one.record: one.units[unit] for one in holders if state.version < one.units.get(unit, 0) <= limit}
            newest = max(live.values(), default=state.version)
            if best is not None and best.version > newest:
                wanted.append(self._kept_of(unit, best, holders))
            elif live:
                wanted.append(self._of(unit, [record for record, version in live.items() if version == newest]))
        return wanted

    def _kept_of(self, unit: Unit, kept: Kept, holders: Sequence[Holder]) -> Wanted:
        sources = [holder.record for holder in holders if holder.gives(unit, kept)]
        return self._of(unit, sources, kept.version, kept.chains[unit])

    def _of(self, unit: Unit, sources: Sequence[PeerRecord], version: int | None = None, chain: bytes | None = None) -> Wanted:
        return Wanted(unit=unit, version=version, chain=chain, check=same_form(self._units.form(unit)), sources=sources)

    async def _take_own(self, unit: Unit, kept: Kept) -> bool:
        """Take the unit of this version from here. Is it here?"""
        held = None if self._holding is None else self._holding.of(unit, kept.version)
        if held is not None and held.chain == kept.chains[unit]:
            await self._take(held, is_newer=False)
            return True
        if await self._own_kept() == kept:
            await self._from_own([unit], kept.version)
            return True
        return False

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
        versions, where = set(), "copies at others" if any(one.version is not None for one in wanted) else "others"
        async with aclosing(download(self._members.pool, self._units.run, wanted)) as found:
            async for snapshot in found:
                await self._take(snapshot)
                versions.add(snapshot.version)
        if versions:
            self._on_event(Event("training", f"fetched version {max(versions)} of {len(wanted)} units from {where}"))

    async def _take(self, snapshot: UnitSnapshot, *, is_newer: bool = True) -> None:
        """is_newer: unless a step has brought us farther meanwhile."""

        def restore() -> bool:
            is_wanted = not is_newer or snapshot.version > self._units.states[snapshot.unit].version
            if is_wanted:
                self._units.restore(snapshot)
            return is_wanted

        if await self._units.device.run(restore, Priority.UPDATE):
            self._on_fetched(snapshot.unit)
