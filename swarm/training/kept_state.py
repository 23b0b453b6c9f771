"""A stage's state to give: of now, or kept of one version.

A checkpoint is assembled while the run goes on, from many stages, so each keeps the state of a version that becomes a checkpoint until
the next such version: one copy of parameters and optimizer state beside the live ones. Pure bookkeeping; copies are made by `live`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from protocols.errors import VersionMismatchError
from protocols.units import Unit
from swarm.training.snapshot import UnitSnapshot


class KeptState:
    """One run's units at one stage. `take` is a `TakeState` of `state_server.py`. Methods belong to one event loop."""

    def __init__(self, live: Callable[[Unit], Awaitable[UnitSnapshot]]) -> None:
        """live: a copy of a unit as it is now (SpanNotServedError: it is not here), taken while no step is applied."""
        self._live = live
        self._kept: dict[Unit, UnitSnapshot] = {}

    def keep(self, snapshot: UnitSnapshot) -> None:
        """Hold this one instead of the unit's earlier one: right after a step to a version that becomes a checkpoint."""
        self._kept[snapshot.unit] = snapshot

    def drop(self, unit: Unit) -> None:
        """The unit is not trained here any more. Harmless if nothing is kept of it."""
        self._kept.pop(unit, None)

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(snapshot.form.num_bytes for snapshot in self._kept.values())

    async def take(self, unit: Unit, version: int | None) -> UnitSnapshot:
        """The kept copy of that version, or one of now if it is that version. VersionMismatchError names the versions that are here."""
        kept = self._kept.get(unit)
        if kept is not None and kept.version == version:
            return kept
        now = await self._live(unit)
        if version is not None and now.version != version:
            held = f"{now.version}" + (f" and {kept.version}" if kept is not None else "")
            raise VersionMismatchError(f"the state of {unit} at version {version} is not here, but {held}; ask another peer")
        return now
