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
    """A stage that joined late is behind, and catches up by itself: of each unit, the newest version counts. If all units are at an
    earlier one, and none is a step behind the newest, some stage has missed that the others have gone back: the earlier one counts."""
    found: dict[Unit, set[int]] = {}
    for stage in stages:
        if not stage.status.is_catching_up:
            for unit in stage.units.values():
                found.setdefault(unit.unit, set()).add(unit.version)
    if not found:
        return Where(version=None)
    version = max(map(max, found.values()))
    unfinished = frozenset(unit for unit, versions in found.items() if max(versions) == version - 1)
    whole = set.intersection(*found.values())
    return Where(version=max(whole) if whole and not unfinished else version, unfinished=unfinished)
