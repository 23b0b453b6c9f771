"""Which version a run is at, from what its peers say.

Normally all units are at one version, or some of them one step ahead while a version is applied. After deaths it may be otherwise: if all
replicas of a unit are gone, newcomers can only have the version of a checkpoint; if all processes have been killed, all stages are new.
Then the stages have to go to the checkpoint's version (`protocols/kept.py`). Pure: trainers and stages judge alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocols.kept import Kept
from protocols.units import Unit

Versions = Mapping[Unit, int]
"""Of one stage: the version of each of its units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Going:
    """The run is at this version, or the stages that lack it can still get it."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """No stage has a later version than this checkpoint, and some have an earlier one: they take it."""

    kept: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Some units are ahead of others: if it stays so, all go back to this checkpoint."""

    kept: Kept | None
    """None: there is no checkpoint to go back to."""
    unit: Unit
    """One that is behind."""
    version: int
    """The latest that a stage has of it."""
    highest: int
    """The latest version of any unit."""

    def __str__(self) -> str:
        return f"no stage has {self.unit} of a version after {self.version}, and others are at version {self.highest}"

    @property
    def is_half_applied(self) -> bool:
        """Is it one step that some units have applied and others not? Then those may have agreed on it, and can still apply it."""
        return self.version == self.highest - 1


Verdict = Going | Restoring | Lost


def judge(stages: Sequence[Versions], kept: Iterable[Kept], units: Collection[Unit]) -> Verdict | None:
    """What the run has to do; None: no stage is there. units: all of the model."""
    found: dict[Unit, set[int]] = {unit: set() for unit in units}
    for stage in stages:
        for unit, version in stage.items():
            found.get(unit, set()).add(version)
    held = [versions for versions in found.values() if versions]
    if not held:
        return None
    highest = max(map(max, held))
    newest = max(kept, key=lambda one: one.version, default=None)
    whole = max(set.intersection(*found.values()), default=None)
    if whole is not None and (newest is None or whole >= newest.version):
        return Going(version=whole)
    if newest is not None and newest.version >= highest:
        is_done = all(versions == {newest.version} for versions in held)
        return Going(version=newest.version) if is_done else Restoring(kept=newest)
    if len(held) < len(found):  # a unit that no stage hosts: wait for a newcomer, and see what it brings
        return Going(version=highest)
    behind = min(found, key=lambda unit: (max(found[unit]), unit))
    return Lost(kept=newest, unit=behind, version=max(found[behind]), highest=highest)


def reach(holders: Iterable[Versions], kept: Iterable[Kept], units: Collection[Unit]) -> int:
    """The version that the whole run can have: of each unit the latest that any peer has, and of these the lowest.

    A unit's state of a version more than one step beyond it is of no use: it is what is left of a history that the others have lost.
    Units that no peer has are left out.
    """
    latest: dict[Unit, int] = {}
    for versions in (*holders, *(dict.fromkeys(units, one.version) for one in kept)):
        for unit, version in versions.items():
            latest[unit] = max(version, latest.get(unit, 0))
    return min((version for unit, version in latest.items() if unit in set(units)), default=0)
