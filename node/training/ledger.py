"""Which micro-batches are in a unit's gradient sum, by part.

The batch of a version is the list of indices 0 … M-1. A unit of one block has one part; `Ends` has two, since a micro-batch visits the
embedding and the head at different times, perhaps on two peers. An index is in a part's set once, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from protocols.errors import BadRequestError
from protocols.parts_of_units import Part
from protocols.runs import MAX_MICRO_BATCHES

MAX_TARGETS: Final = 1 << 31
"""Target tokens of one micro-batch, exclusive."""


class Ledger:
    """Indices of micro-batches by part, each with its number of target tokens. Not thread-safe: `UnitState` guards it."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._targets: dict[Part, dict[int, int]] = {part: {} for part in parts}

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self._targets)

    def check(self, part: Part, index: int, num_targets: int) -> None:
        """Raise the BadRequestError that `add` would raise."""
        if part not in self._targets:
            raise BadRequestError(f"{part} is counted elsewhere; here are {', '.join(map(str, self._targets))}")
        if not 0 <= index < MAX_MICRO_BATCHES:
            raise BadRequestError(f"a micro-batch has an index from 0 to {MAX_MICRO_BATCHES - 1}, got {index}")
        if not 0 <= num_targets < MAX_TARGETS:
            raise BadRequestError(f"a micro-batch has 0 to {MAX_TARGETS - 1} target tokens, got {num_targets}")
        if self.holds(part, index):
            raise BadRequestError(f"micro-batch {index} is in the sum of {part} already; leave it out")

    def holds(self, part: Part, index: int) -> bool:
        """Is this micro-batch in the part's sum? False for a part that is counted elsewhere."""
        return index in self._targets.get(part, ())

    def add(self, part: Part, index: int, num_targets: int) -> None:
        """From now on the sum of `part` holds `index`. BadRequestError, with nothing changed, as of `check`."""
        self.check(part, index, num_targets)
        self._targets[part][index] = num_targets

    def targets(self, part: Part) -> dict[int, int]:
        """A copy: target tokens by index, in the order of indices."""
        return dict(sorted(self._targets[part].items()))

    def bitmap(self, part: Part, num_micro_batches: int) -> bytes:
        """`bitmap_of` the part's indices."""
        return bitmap_of(self._targets[part], num_micro_batches)

    def clear(self) -> None:
        for held in self._targets.values():
            held.clear()


def bitmap_of(indices: Iterable[int], num_micro_batches: int) -> bytes:
    """Bit i % 8 (least significant first) of byte i // 8 says that index i is held: ceil(M / 8) bytes; indices from M on are left out."""
    number = sum(1 << index for index in set(indices) if index < num_micro_batches)
    return number.to_bytes((num_micro_batches + 7) // 8, "little")


def indices_of(bitmap: bytes) -> Iterator[int]:
    """The indices that `bitmap_of` was made from, in order."""
    for at, byte in enumerate(bitmap):
        yield from (8 * at + bit for bit in range(8) if byte >> bit & 1)
