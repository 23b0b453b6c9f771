"""Adds one micro-batch's gradients to the sums of all its units."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from node.training.flight import Gradients
from node.training.unit_state import UnitState
from protocols.parts_of_units import Part
from protocols.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulated:
    """What a receipt says."""

    added: tuple[Part, ...]
    held: tuple[Part, ...]
    """Their sums had the index already."""


def accumulate(
    states: Mapping[Unit, UnitState],
    gradients: Gradients,
    index: int,
    num_targets: int,
    *,
    version: int,
    skip: Collection[Part] = (),
) -> Accumulated:
    """Add the gradients of all parts, but of those in `skip` and of those that have the index already. All of them, or none.

    Errors, with nothing changed in any unit: as of `UnitState.check`.
    """
    wanted = [part for part in sorted(gradients.by_part) if part not in skip]
    with ExitStack() as locks:
        for unit in sorted({part.unit for part in wanted}):  # one order for all callers
            locks.enter_context(states[unit].lock)
            states[unit].check_open(version)
        held = [part for part in wanted if states[part.unit].holds(part, index)]
        added = [part for part in wanted if part not in held]
        for part in added:
            states[part.unit].check(part, index, gradients.by_part[part], num_targets, version=version)
        for part in added:
            states[part.unit].put(part, index, gradients.by_part[part], num_targets)
    return Accumulated(added=tuple(added), held=tuple(held))
