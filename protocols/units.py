"""Units: parts of a model to host, fetch or train.

    Blocks      decoder/3:6                                  consecutive blocks [3, 6)
    Ends        decoder/ends                                 embedding, final norm and head
    Expert      decoder/4/expert/7                           one expert of block 4
    Partition   decoder/4/self_attn.q_proj/rows/0:128        matrix rows [0, 128) of one matrix of block 4, as stored

A unit has exactly one text, which is what travels and what is signed. `parse_unit` takes that text only: no sign, no leading zero,
no other case. Which stored bytes a unit is made of depends on the checkpoint: `swarm/checkpoints/unit_parts.py`.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass
from functools import total_ordering
from typing import Any, ClassVar, Final

from protocols.errors import BadRequestError, shown
from protocols.ids import MAX_BLOCKS, Span

STACKS: Final = ("decoder", "encoder")
AXES: Final = ("rows", "columns")
"""Of a matrix as it is stored: axis 0 is `rows`, axis 1 `columns`."""

MAX_EXPERTS: Final = 1 << 13
"""Experts of one block."""

MAX_EXTENT: Final = 1 << 24
"""Rows or columns of one matrix."""

MAX_MATRIX_NAME: Final = 120
"""Letters of a matrix's name within its block."""

MAX_UNIT_TEXT: Final = 160
"""Letters of a unit's text."""

_NUMBER = "0|[1-9][0-9]{0,7}"
_MATRIX = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_RANGE = rf"(?P<start>{_NUMBER}):(?P<stop>{_NUMBER})"
_LAYER = rf"(?P<layer>{_NUMBER})"
_FORMS: Final = tuple(
    re.compile(rf"(?P<stack>{'|'.join(STACKS)})/{form}")
    for form in (
        _RANGE,
        "ends",
        rf"{_LAYER}/expert/(?P<index>{_NUMBER})",
        rf"{_LAYER}/(?P<matrix>{_MATRIX.pattern})/(?P<axis>{'|'.join(AXES)})/{_RANGE}",
    )
)
_INTEGERS: Final = frozenset(("start", "stop", "layer", "index"))


@total_ordering
class _Kind:
    """What all kinds share. Units are ordered by stack, then kind (in the order of `_KINDS`), then their fields."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    stack: str

    def __lt__(self, other: object) -> bool:
        return self._key() < other._key() if isinstance(other, _Kind) else NotImplemented

    def _key(self) -> tuple[object, ...]:
        return (
            STACKS.index(self.stack),
            _KINDS.index(type(self)),
            tuple(getattr(self, name) for name in self.__dataclass_fields__),
        )

    def _check(self, is_right: bool, expected: str) -> None:
        if self.stack not in STACKS or not is_right:
            raise BadRequestError(f"a unit of a {' or '.join(STACKS)} is {expected}, got {shown(self)}")


def _is_range(unit: Blocks | Partition, longest: int) -> bool:
    return 0 <= unit.start < unit.stop <= longest


@dataclass(frozen=True, slots=True)
class Blocks(_Kind):
    """Blocks `[start, stop)`, with 0 <= start < stop <= MAX_BLOCKS. BadRequestError otherwise, as for every kind."""

    start: int
    stop: int
    stack: str = "decoder"

    def __post_init__(self) -> None:
        self._check(_is_range(self, MAX_BLOCKS), f"blocks start:stop with 0 <= start < stop <= {MAX_BLOCKS}")

    @classmethod
    def of(cls, span: Span) -> Blocks:
        """The decoder's blocks of a span."""
        return cls(span.start, span.stop)

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)

    def __str__(self) -> str:
        return f"{self.stack}/{self.start}:{self.stop}"


@dataclass(frozen=True, slots=True)
class Ends(_Kind):
    """What stands before the first block and behind the last one: embedding, final norm and head."""

    stack: str = "decoder"

    def __post_init__(self) -> None:
        self._check(True, "its ends")

    def __str__(self) -> str:
        return f"{self.stack}/ends"


@dataclass(frozen=True, slots=True)
class Expert(_Kind):
    """Expert `index` of block `layer`; what the block's experts share (its router, shared experts) is not part of it."""

    layer: int
    index: int
    stack: str = "decoder"

    def __post_init__(self) -> None:
        is_right = 0 <= self.layer < MAX_BLOCKS and 0 <= self.index < MAX_EXPERTS
        self._check(is_right, f"an expert with a layer below {MAX_BLOCKS} and an index below {MAX_EXPERTS}")

    def __str__(self) -> str:
        return f"{self.stack}/{self.layer}/expert/{self.index}"


@dataclass(frozen=True, slots=True)
class Partition(_Kind):
    """Rows or columns `[start, stop)` of one matrix of block `layer`, counted as the checkpoint stores it.

    matrix: its name within the block, without `.weight` (`self_attn.q_proj`). A bias is a vector, and is not part of it.
    """

    layer: int
    matrix: str
    axis: str
    """One of AXES."""
    start: int
    stop: int
    stack: str = "decoder"

    def __post_init__(self) -> None:
        is_name = len(self.matrix) <= MAX_MATRIX_NAME and _MATRIX.fullmatch(self.matrix) is not None
        is_right = 0 <= self.layer < MAX_BLOCKS and _is_range(self, MAX_EXTENT)
        self._check(
            is_name and is_right and self.axis in AXES,
            f"a matrix's {' or '.join(AXES)} start:stop with 0 <= start < stop <= {MAX_EXTENT}, in a layer below {MAX_BLOCKS}, "
            f"with a name of at most {MAX_MATRIX_NAME} letters",
        )

    def __str__(self) -> str:
        return f"{self.stack}/{self.layer}/{self.matrix}/{self.axis}/{self.start}:{self.stop}"


Unit = Blocks | Ends | Expert | Partition
ENDS: Final[frozenset[Unit]] = frozenset({Ends()})
"""What a client without files needs beside the first and the last block."""


def is_part(part: Unit, whole: Unit) -> bool:
    """Does a host of `whole` have all of `part`? Experts and partitions of a block are parts of the block."""
    if not isinstance(whole, Blocks) or isinstance(part, Ends) or part.stack != whole.stack:
        return part == whole
    start, stop = (part.start, part.stop) if isinstance(part, Blocks) else (part.layer, part.layer + 1)
    return whole.start <= start and stop <= whole.stop


_KINDS: Final[tuple[type[Unit], ...]] = (Blocks, Ends, Expert, Partition)


def find_unit(text: str) -> Unit | None:
    """The unit that a text stands for; None if it has the form of none that is known here. BadRequestError for wrong numbers."""
    for kind, form in zip(_KINDS, _FORMS, strict=True):
        if match := form.fullmatch(text):
            values: dict[str, Any] = {key: int(value) if key in _INTEGERS else value for key, value in match.groupdict().items()}
            return kind(**values)
    return None


def parse_unit(text: object) -> Unit:
    """The unit that a text stands for: `str(parse_unit(text)) == text`. BadRequestError for any other text."""
    unit = find_unit(text) if isinstance(text, str) and len(text) <= MAX_UNIT_TEXT else None
    if unit is None:
        raise BadRequestError(
            f"not a unit: {shown(text)}; expected stack/start:stop, stack/ends, stack/layer/expert/index "
            "or stack/layer/matrix/rows/start:stop (or columns), with a stack of decoder or encoder"
        )
    return unit


def parse_blocks(text: object) -> Blocks:
    """The blocks that a text stands for; BadRequestError for any other text, and for any other kind of unit."""
    unit = parse_unit(text)
    if not isinstance(unit, Blocks):
        raise BadRequestError(f"expected blocks (stack/start:stop), got {unit}")
    return unit
