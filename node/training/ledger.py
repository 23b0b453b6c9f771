"""Which micro-batches are in a unit's gradient sum, by part.

The batch of a version is the list of indices 0 … M-1. A unit of one block has one part; `Ends` has two, since a micro-batch visits the
embedding and the head at different times, perhaps on two peers. An index is in a part's mask once, or not at all.
"""

from __future__ import annotations

from typing import Final

from protocols.errors import BadRequestError
from protocols.parts_of_units import Part, parts_of
from protocols.runs import MAX_MICRO_BATCHES
from protocols.units import Unit

MAX_TARGETS: Final = 1 << 31
"""Target tokens of one micro-batch, exclusive."""


class UnitLedger:
    """The indices of one elementary unit, by part, and the target tokens of each. Not thread-safe: `UnitState` guards it."""

    def __init__(self, unit: Unit) -> None:
        self._masks = dict.fromkeys(parts_of(unit), 0)
        self._targets: dict[int, int] = {}

    @property
    def masks(self) -> dict[Part, int]:
        """For each of `parts_of(unit)`, in that order: bit n says that index n is in the sum. A copy."""
        return dict(self._masks)

    @property
    def num_targets(self) -> dict[int, int]:
        """Target tokens of each index that is in the sum of any part: a copy, in the order of indices."""
        return dict(sorted(self._targets.items()))

    def holds(self, part: Part, index: int) -> bool:
        """Is this micro-batch in the part's sum? False for a part of another unit."""
        return bool(self._masks.get(part, 0) >> index & 1)

    def check(self, part: Part, index: int, num_targets: int) -> None:
        """Raise the BadRequestError that `add` would raise."""
        if part not in self._masks:
            raise BadRequestError(f"{part} is of another unit; here are {', '.join(map(str, self._masks))}")
        if not 0 <= index < MAX_MICRO_BATCHES:
            raise BadRequestError(f"a micro-batch has an index from 0 to {MAX_MICRO_BATCHES - 1}, got {index}")
        if not 0 <= num_targets < MAX_TARGETS:
            raise BadRequestError(f"a micro-batch has 0 to {MAX_TARGETS - 1} target tokens, got {num_targets}")
        if self.holds(part, index):
            raise BadRequestError(f"micro-batch {index} is in the sum of {part} already; leave it out")
        if (known := self._targets.get(index, num_targets)) != num_targets:
            raise BadRequestError(f"micro-batch {index} had {known} target tokens in another part, now {num_targets}")

    def add(self, part: Part, index: int, num_targets: int) -> None:
        """From now on the sum of `part` has `index`. BadRequestError, with nothing changed, as of `check`."""
        self.check(part, index, num_targets)
        self._masks[part] |= 1 << index
        self._targets[index] = num_targets

    def clear(self) -> None:
        self._masks = dict.fromkeys(self._masks, 0)
        self._targets = {}
