"""Parts of a training unit: what a gradient ledger counts.

    decoder/3:4              block 3: a part of its own
    decoder/ends/embed       the embedding, which a micro-batch visits at its first hop
    decoder/ends/head        final norm and head, which it visits at its last hop

The two parts of `Ends` may be visited on two peers, so each has its own indices. A tied head is one parameter: each of the two visits
gives it a gradient, and the sum of both is its gradient. A part has exactly one text, which is what travels and what is signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering
from typing import Final, Literal

from protocols.errors import BadRequestError, shown
from protocols.units import MAX_UNIT_TEXT, Blocks, Ends, Unit, find_unit

Side = Literal["embed", "head"]
SIDES: Final[tuple[Side, Side]] = ("embed", "head")
MAX_PART_TEXT: Final = MAX_UNIT_TEXT


@total_ordering
@dataclass(frozen=True, slots=True)
class Part:
    """One block, or one side of `Ends`. Ordered by unit (blocks first), then side. BadRequestError for any other unit or side."""

    unit: Blocks | Ends
    """One block alone, or embedding and head."""
    side: Side | None = None
    """Which half of `Ends`; None for a block."""

    def __post_init__(self) -> None:
        is_block = isinstance(self.unit, Blocks) and self.unit.stop == self.unit.start + 1 and self.side is None
        if not is_block and not (isinstance(self.unit, Ends) and self.side in SIDES):
            raise BadRequestError(
                f"a part is one block, or the {' or '.join(SIDES)} side of Ends, got {shown(str(self.unit))} with side {self.side!r}"
            )

    @classmethod
    def block(cls, number: int) -> Part:
        """The part that is block `number` of the decoder."""
        return cls(Blocks(number, number + 1))

    def __lt__(self, other: object) -> bool:
        return (self.unit, self.side or "") < (other.unit, other.side or "") if isinstance(other, Part) else NotImplemented

    def __str__(self) -> str:
        return str(self.unit) if self.side is None else f"{self.unit}/{self.side}"


EMBED: Final = Part(Ends(), "embed")
HEAD: Final = Part(Ends(), "head")


def parts_of(unit: Unit) -> tuple[Part, ...]:
    """What a ledger of this elementary training unit counts, in order. BadRequestError for units that are not elementary."""
    if isinstance(unit, Ends):
        return tuple(Part(unit, side) for side in SIDES)
    if isinstance(unit, Blocks) and unit.stop == unit.start + 1:
        return (Part(unit),)
    raise BadRequestError(f"{unit} is no elementary training unit; expected one block, or Ends")


def parse_part(text: object) -> Part:
    """The part that a text stands for: `str(parse_part(text)) == text`. BadRequestError for any other text."""
    if isinstance(text, str) and len(text) <= MAX_PART_TEXT:
        for side in SIDES:
            if text.endswith(f"/{side}") and isinstance(unit := find_unit(text.removesuffix(f"/{side}")), Ends):
                return Part(unit, side)
        if isinstance(unit := find_unit(text), Blocks):
            return Part(unit)
    raise BadRequestError(f"not a part: {shown(text)}; expected stack/number:number+1 or stack/ends/{' or /'.join(SIDES)}")
