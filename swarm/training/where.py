"""At which version a run is, by what its stages say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocols.units import Unit
from swarm.training.members import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """How far a run is."""

    version: int | None
    """The newest that a stage has; None: there is no stage."""
    unfinished: frozenset[Unit] = frozenset()
    """Units of which no stage has that version, but one has the version before: their groups have agreed, and were not told to apply."""


def where(stages: Iterable[Stage]) -> Where:
    """A stage that joined late is behind, and catches up by itself: of each unit, the newest version counts."""
    newest: dict[Unit, int] = {}
    for stage in stages:
        if not stage.status.is_catching_up:
            for unit in stage.units.values():
                newest[unit.unit] = max(unit.version, newest.get(unit.unit, 0))
    version = max(newest.values(), default=None)
    if version is None:
        return Where(version=None)
    return Where(version=version, unfinished=frozenset(unit for unit, found in newest.items() if found == version - 1))
