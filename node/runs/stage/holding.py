"""Versions of a run that a stage holds in memory.

When a trainer says so (`protocols/held.py`), a stage copies its own units before they step again, and fetches copies of those whose buddy
it is (`swarm/training/buddies.py`) in the background. So if all replicas of a unit die at once, another stage has a copy, and the run goes
back by some versions at most.

Any peer may call. So a call never drops what is held: the older version goes when this stage sees itself that the stages have the newer one
together. A version that they do not have together is dropped, and who may begin the next one is up to `hold_turns.py`.

Memory: the state of the own units once, and of others' at most as much; twice that while the next version is copied. A stage that has not
so much free memory, with a half of it to spare, holds less, or nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.events import Event, OnEvent
from node.hardware import free_memory_bytes
from node.runs.stage.buddy_copies import BuddyCopies, Forms
from node.runs.stage.hold_turns import HoldTurns
from node.training.run_units import RunUnits
from protocols.errors import BadRequestError, NoRouteError, OverloadedError, VersionMismatchError
from protocols.held import MAX_HELD, Held, Hold, whole_versions
from protocols.ids import PeerId, short_peer
from protocols.kept import Kept
from protocols.units import Unit
from protocols.words import counted
from swarm.clock import SYSTEM, Clock
from swarm.tasks import Tasks
from swarm.training.members import Holder, Members
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_server import TakeState

log = logging.getLogger(__name__)

WHOLE_S = 10.0
"""So long after the own units were copied, the other stages may take to copy theirs; then the version is dropped."""

LOOK_S = 0.5
"""Seconds between two looks at what the other stages hold."""


@dataclass(eq=False)
class _Version:
    """One version that is held."""

    kept: Kept
    chain: bytes
    snapshots: dict[Unit, UnitSnapshot] = field(default_factory=dict)
    is_done: bool = False
    """Nothing more is being copied."""
    work: asyncio.Task[None] | None = None
    """None: the own units are being taken."""

    @property
    def held(self) -> Held:
        chains = {unit: self.kept.chains[unit] for unit in self.snapshots}
        return Held(version=self.kept.version, whole=self.chain, chains=chains, is_done=self.is_done)

    def is_whole(self, holders: Sequence[Holder]) -> bool:
        """Do we and these have all units of it together?"""
        return self.kept in whole_versions([self.held, *self._others(holders)])

    def is_done_by_all(self, holders: Sequence[Holder]) -> bool:
        """Do neither we nor these copy anything more of it?"""
        return self.is_done and all(other.is_done for other in self._others(holders))

    def _others(self, holders: Sequence[Holder]) -> list[Held]:
        own = self.kept.version, self.chain
        return [one for holder in holders for one in holder.held if (one.version, one.whole) == own]


class Holding:
    """Of one run at one stage. Belongs to one event loop."""

    def __init__(
        self,
        units: RunUnits,
        take_own: TakeState,
        members: Members,
        me: PeerId,
        forms: Forms,
        on_event: OnEvent,
        free_bytes: Callable[[], int] = free_memory_bytes,
        clock: Clock = SYSTEM,
    ) -> None:
        """take_own: a copy of a unit that is trained here, of this version."""
        self._units, self._take_own, self._members = units, take_own, members
        self._on_event, self._free_bytes = on_event, free_bytes
        self._copies = BuddyCopies(units, members, me, forms)
        self._versions: dict[int, _Version] = {}
        self._tasks, self._clock, self._turns = Tasks(), clock, HoldTurns()
        self._said = ""
        self._own_bytes = sum(units.form(unit).num_bytes for unit in units.states)
        self.has_memory = self._has_free(4)
        """Is there memory for copies of others' units?"""

    @property
    def held(self) -> tuple[Held, ...]:
        """What `run_status` says of it."""
        return tuple(one.held for one in self._versions.values())

    def of(self, unit: Unit, version: int | None) -> UnitSnapshot | None:
        """What is held of this unit at this version; None: nothing."""
        found = None if version is None else self._versions.get(version)
        return None if found is None else found.snapshots.get(unit)

    async def hold(self, request: Hold, caller: PeerId) -> int:
        """Take copies of the own units, if they are at this version, and begin to copy others'. A second call for the same version
        changes nothing; nor does one that is refused.

        VersionMismatchError: no unit is at this version. BadRequestError: one has another chain, or units are missing. OverloadedError:
        another version is being copied, it is too early for one, or memory is short.
        """
        kept = request.kept
        own = self._own(kept)
        self._keep_only(
            lambda one: one.kept.version != kept.version or all(one.kept.chains[unit] == kept.chains[unit] for unit in own)
        )
        if self._holds(kept):
            return kept.version
        self._turns.check(caller, self._clock.now_s())
        self.has_memory = self._has_free(4)
        if not self._has_free(2):
            self._say("none: too little memory is free")
            raise OverloadedError(f"too little memory is free to hold version {kept.version}")
        one = self._versions[kept.version] = _Version(kept, kept.chain)
        await asyncio.shield(self._tasks.keep(self._begin(one, own, caller), "copy own units"))  # to its end if the caller leaves
        return kept.version

    def go_back(self, version: int) -> None:
        """The run goes on from this version: later ones are of a history that has ended."""
        self._keep_only(lambda one: one.kept.version <= version)

    async def stop(self) -> None:
        """End what is being copied; nothing is held any more."""
        self._keep_only(lambda one: False)
        await self._tasks.stop()

    # --- own units

    def _holds(self, kept: Kept) -> bool:
        """Is this version here? OverloadedError: another one has to be held by all stages, or dropped, before this one is begun."""
        if (same := self._versions.get(kept.version)) is not None:
            if same.kept != kept:
                raise OverloadedError(
                    f"version {kept.version} is held here with other chains of units that others train: ask later"
                )
            return True
        if len(self._versions) == MAX_HELD or not all(one.is_done for one in self._versions.values()):
            raise OverloadedError(f"version {max(self._versions)} is being copied: ask for another one when that is done")
        return False

    def _own(self, kept: Kept) -> list[Unit]:
        if self._members.units != kept.chains.keys():
            raise BadRequestError(
                f"version {kept.version} has {counted(len(kept.chains), 'unit')}, not those of the model: name all"
            )
        found = []
        for unit, state in self._units.states.items():
            if state.version == kept.version:
                if state.chain != kept.chains.get(unit):
                    raise BadRequestError(f"the chain of {unit} at version {kept.version} is another one here")
                found.append(unit)
        if not found:
            raise VersionMismatchError(f"no unit here is at version {kept.version}: it cannot be held")
        return found

    async def _begin(self, one: _Version, own: Sequence[Unit], caller: PeerId) -> None:
        kept, began_s = one.kept, self._clock.now_s()
        try:
            for unit in own:
                snapshot = await self._take_own(unit, kept.version)
                if snapshot.chain == kept.chains[unit]:
                    one.snapshots[unit] = snapshot
        except VersionMismatchError as error:  # the next step was sooner; what is there may do, with others' replicas
            log.info("version %d: %s", kept.version, error)
        except BaseException:
            self._drop(one)
            raise
        if self._versions.get(kept.version) is one:
            one.work = self._tasks.keep(self._complete(one, began_s, caller), f"hold version {kept.version}")

    async def _complete(self, one: _Version, began_s: float, caller: PeerId) -> None:
        """Copy what falls to us, and drop the older version once all stages are done; drop this one if they do not have it together."""
        if not await self._becomes_whole(one):
            log.info("version %d of %s is dropped: the stages do not hold it together", one.kept.version, short_peer(caller))
            self._turns.failed(caller, self._clock.now_s())
            self._drop(one)
            return
        try:
            if self.has_memory:
                mine = await self._copies.fetch(one.kept, one.snapshots)
                self._tell(one, [unit for unit in mine if unit in one.snapshots])
        finally:
            one.is_done = True
        now_s = self._clock.now_s()
        self._turns.held(now_s - began_s, now_s)
        await self._settle(one)

    async def _settle(self, one: _Version) -> None:
        """Once all stages are done, hold this version alone; or the older one if they do not have this one together any more."""
        while len(self._versions) > 1:
            holders = await self._look()
            is_whole = one.is_whole(holders)
            if one.is_done_by_all(holders) and (holders or is_whole):  # if no other is heard, nothing is known of them
                for gone in [other for other in self._versions.values() if (other is one) is not is_whole]:
                    self._drop(gone)
                return
            await asyncio.sleep(LOOK_S)

    async def _becomes_whole(self, one: _Version) -> bool:
        ends_s = self._clock.now_s() + WHOLE_S
        while not one.is_whole(await self._look()):
            if self._clock.now_s() >= ends_s:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    # --- help

    async def _look(self) -> list[Holder]:
        """Others that answer; none while the directory never could be asked."""
        try:
            return await self._members.look_at_all()
        except NoRouteError as error:
            log.info("%s", error)
            return []

    def _keep_only(self, is_kept: Callable[[_Version], bool]) -> None:
        for one in [one for one in self._versions.values() if not is_kept(one)]:
            self._drop(one)

    def _drop(self, one: _Version) -> None:
        if self._versions.get(one.kept.version) is one:
            del self._versions[one.kept.version]
        if one.work is not None and one.work is not asyncio.current_task():
            one.work.cancel()

    def _has_free(self, times: int) -> bool:
        return self._free_bytes() >= times * self._own_bytes

    def _tell(self, one: _Version, copies: Sequence[Unit]) -> None:
        num_bytes = sum(snapshot.form.num_bytes for snapshot in one.snapshots.values())
        log.info("version %d is held: %d units, %d of them others', %d bytes", one.kept.version, len(one.snapshots),
                 len(copies), num_bytes)  # fmt: skip
        if copies:
            self._say(f"{counted(len(copies), 'unit')} of others in memory, {num_bytes / 1e6:,.1f} MB with its own")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._on_event(Event("copies", text))
