"""Copies of units that a stage does not train, of one version.

Which ones these are is in `swarm/training/buddies.py`; they are fetched as a newcomer fetches its state (`state_download.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from node.training.run_units import RunUnits
from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.kept import Kept
from protocols.state import Form
from protocols.units import Unit
from swarm.training.buddies import buddies
from swarm.training.members import Holder, Members
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, trained_form

log = logging.getLogger(__name__)

TRIES, AGAIN_S = 20, 1.0
"""So often copies are asked for, with a pause: a stage sends few states at once, and others come first perhaps."""

Forms = Callable[[], Mapping[Unit, Form]]
"""The parameters of every unit of the model, by the names of a snapshot. May take seconds: it is called once, in a thread."""


class BuddyCopies:
    """Of one run at one stage. Belongs to one event loop."""

    def __init__(self, units: RunUnits, members: Members, me: PeerId, forms: Forms) -> None:
        self._units, self._members, self._me, self._make_forms = units, members, me, forms
        self._forms: Mapping[Unit, Form] = {}

    async def fetch(self, kept: Kept, snapshots: dict[Unit, UnitSnapshot]) -> list[Unit]:
        """Add to `snapshots` what falls to this stage and is not there; all units that fall to it. Some may not be had."""
        if not self._forms:
            self._forms = await asyncio.to_thread(self._make_forms)
        holders = await self._members.look_at_all()
        mine = [unit for unit in self._mine(holders) if unit in kept.chains]
        for _ in range(TRIES):
            try:
                await self._fetch(kept, [unit for unit in mine if unit not in snapshots], holders, snapshots)
                break
            except SwarmError as error:
                log.info("copies of version %d: %s", kept.version, error)
            await asyncio.sleep(AGAIN_S)
            holders = await self._members.look_at_all()
        return mine

    def _mine(self, holders: Sequence[Holder]) -> list[Unit]:
        """The units that this stage copies."""
        trained = {one.record.peer: set(one.units) for one in holders if one.units} | {self._me: set(self._units.states)}
        with_memory = {one.record.peer for one in holders if one.has_memory} | {self._me}
        chosen = buddies(trained, {unit: form.num_bytes for unit, form in self._forms.items()}, with_memory)
        return sorted(unit for unit, peer in chosen.items() if peer == self._me)

    async def _fetch(
        self, kept: Kept, units: Sequence[Unit], holders: Sequence[Holder], snapshots: dict[Unit, UnitSnapshot]
    ) -> None:
        wanted = [
            Wanted(
                unit=unit, version=kept.version, chain=kept.chains[unit], check=trained_form(self._forms[unit]),
                sources=[holder.record for holder in holders if holder.units.get(unit, 0) >= kept.version],
            )
            for unit in units
        ]  # fmt: skip
        async with aclosing(download(self._members.pool, self._units.run, wanted, at_once=1)) as found:
            async for snapshot in found:
                snapshots[snapshot.unit] = snapshot
