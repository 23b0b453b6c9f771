"""Versions of a run that a stage holds in memory.

When the coordinating trainer says so (`protocols/held.py`), a stage copies its own units before they step again, and fetches copies of
those whose buddy it is (`swarm/training/buddies.py`) in the background. So if all replicas of a unit die at once, another stage has a copy,
and the run goes back by some versions at most.

Memory: the state of the own units once, and of others' at most as much; twice that while the next version is copied. A stage that has not
so much free memory, with a half of it to spare, holds less, or nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from node.events import Event, OnEvent
from node.hardware import free_memory_bytes
from node.training.run_units import RunUnits
from protocols.errors import BadRequestError, OverloadedError, SwarmError, VersionMismatchError
from protocols.held import Held, Hold
from protocols.ids import PeerId
from protocols.kept import Kept
from protocols.state import Form
from protocols.units import Unit
from protocols.words import counted
from swarm.tasks import Tasks
from swarm.training.buddies import buddies
from swarm.training.members import Holder, Members
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, trained_form
from swarm.training.state_server import TakeState

log = logging.getLogger(__name__)

TRIES, AGAIN_S = 20, 1.0
"""So often copies are asked for, with a pause: a stage sends few states at once, and others come first perhaps."""

Forms = Callable[[], Mapping[Unit, Form]]
"""The parameters of every unit of the model, by the names of a snapshot. May take seconds: it is called once, in a thread."""


@dataclass(eq=False)
class _Version:
    """One version that is held."""

    kept: Kept
    chain: bytes
    snapshots: dict[Unit, UnitSnapshot] = field(default_factory=dict)
    copying: asyncio.Task[None] | None = None
    """None: the own units are being taken."""

    @property
    def held(self) -> Held:
        chains = {unit: self.kept.chains[unit] for unit in self.snapshots}
        is_done = self.copying is not None and self.copying.done()
        return Held(version=self.kept.version, whole=self.chain, chains=chains, is_done=is_done)


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
    ) -> None:
        """take_own: a copy of a unit that is trained here, of this version."""
        self._units, self._take_own, self._members, self._me = units, take_own, members, me
        self._make_forms, self._on_event, self._free_bytes = forms, on_event, free_bytes
        self._forms: Mapping[Unit, Form] | None = None
        self._versions: dict[int, _Version] = {}
        self._tasks = Tasks()
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

    async def hold(self, request: Hold) -> int:
        """Take copies of the own units, if they are at this version, and begin to copy others'. All versions but this one and
        `request.whole` are dropped. A second call for the same version changes nothing else.

        VersionMismatchError: no unit is at this version. BadRequestError: one has another chain. OverloadedError: memory is short.
        """
        kept = request.kept
        self._keep_only(lambda one: one.kept == kept or one.kept.version == request.whole != kept.version)
        if kept.version not in self._versions:
            own = self._own(kept)
            self.has_memory = self._has_free(4)
            if not self._has_free(2):
                self._say("none: too little memory is free")
                raise OverloadedError(f"too little memory is free to hold version {kept.version}")
            await self._begin(kept, own)
        return kept.version

    def go_back(self, version: int) -> None:
        """The run goes on from this version: later ones are of a history that has ended."""
        self._keep_only(lambda one: one.kept.version <= version)

    async def stop(self) -> None:
        """End what is being copied; nothing is held any more."""
        self._keep_only(lambda one: False)
        await self._tasks.stop()

    # --- own units

    def _own(self, kept: Kept) -> list[Unit]:
        found = []
        for unit, state in self._units.states.items():
            if state.version == kept.version:
                if state.chain != kept.chains.get(unit):
                    raise BadRequestError(f"the chain of {unit} at version {kept.version} is another one here")
                found.append(unit)
        if not found:
            raise VersionMismatchError(f"no unit here is at version {kept.version}: it cannot be held")
        return found

    async def _begin(self, kept: Kept, own: Sequence[Unit]) -> None:
        one = self._versions[kept.version] = _Version(kept, kept.chain)
        try:
            for unit in own:
                snapshot = await self._take_own(unit, kept.version)
                if snapshot.chain == kept.chains[unit]:
                    one.snapshots[unit] = snapshot
        except VersionMismatchError as error:  # the next step was sooner; what is there may do, with others' replicas
            log.info("version %d: %s", kept.version, error)
        except BaseException:
            self._keep_only(lambda other: other is not one)
            raise
        one.copying = self._tasks.keep(self._copy(one), f"copy version {kept.version}")

    # --- others' units

    async def _copy(self, one: _Version) -> None:
        if not self.has_memory:
            return
        if self._forms is None:
            self._forms = await asyncio.to_thread(self._make_forms)
        holders = await self._members.look_at_all()
        mine = [unit for unit in self._mine(holders) if unit in one.kept.chains]
        for _ in range(TRIES):
            left = [unit for unit in mine if unit not in one.snapshots]
            try:
                await self._fetch(one, left, holders)
                break
            except SwarmError as error:
                log.info("copies of version %d: %s", one.kept.version, error)
            await asyncio.sleep(AGAIN_S)
            holders = await self._members.look_at_all()
        self._tell(one, mine)

    def _mine(self, holders: Sequence[Holder]) -> list[Unit]:
        """The units that this stage copies."""
        assert self._forms is not None
        trained = {one.record.peer: set(one.units) for one in holders if one.units} | {self._me: set(self._units.states)}
        with_memory = {one.record.peer for one in holders if one.has_memory} | {self._me}
        chosen = buddies(trained, {unit: form.num_bytes for unit, form in self._forms.items()}, with_memory)
        return sorted(unit for unit, peer in chosen.items() if peer == self._me)

    async def _fetch(self, one: _Version, units: Sequence[Unit], holders: Sequence[Holder]) -> None:
        assert self._forms is not None
        version, chains = one.kept.version, one.kept.chains
        wanted = [
            Wanted(
                unit=unit, version=version, chain=chains[unit], check=trained_form(self._forms[unit]),
                sources=[holder.record for holder in holders if holder.units.get(unit, 0) >= version],
            )
            for unit in units
        ]  # fmt: skip
        async with aclosing(download(self._members.pool, self._units.run, wanted, at_once=1)) as found:
            async for snapshot in found:
                one.snapshots[snapshot.unit] = snapshot

    # --- help

    def _keep_only(self, is_kept: Callable[[_Version], bool]) -> None:
        for one in [one for one in self._versions.values() if not is_kept(one)]:
            del self._versions[one.kept.version]
            if one.copying is not None:
                one.copying.cancel()

    def _has_free(self, times: int) -> bool:
        return self._free_bytes() >= times * self._own_bytes

    def _tell(self, one: _Version, mine: Sequence[Unit]) -> None:
        copies = [unit for unit in mine if unit in one.snapshots]
        num_bytes = sum(snapshot.form.num_bytes for snapshot in one.snapshots.values())
        log.info("version %d is held: %d units, %d of them others', %d bytes", one.kept.version, len(one.snapshots),
                 len(copies), num_bytes)  # fmt: skip
        if copies:
            self._say(f"{counted(len(copies), 'unit')} of others in memory, {num_bytes / 1e6:,.1f} MB with its own")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._on_event(Event("copies", text))
