"""Hosted: one unit that a peer announces, with its weights and load.

In a record it is a map under short keys; what is zero, empty or usual is left out, and unknown keys are ignored:

    u  the unit's text    n  blocks of the whole stack    d  compute dtype    w  which of the record's weights
    q  quantization       t  state    f  free tokens    l  queue    s  step_ms    b  block_ms    h  capacity_blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols import fields
from protocols.errors import BadRequestError
from protocols.ids import MAX_BLOCKS, Span
from protocols.units import MAX_UNIT_TEXT, Blocks, Ends, Unit, find_unit
from protocols.weights_id import Weights

STATES: Final = ("joining", "serving", "draining")
MAX_COUNT: Final = 1 << 40
MAX_QUEUE: Final = 1 << 20
MAX_HUNDREDTHS: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a unit is, and how fast; 0 = not measured. Milliseconds travel as hundredths."""

    free_tokens: int = 0
    """Tokens of KV memory that its peer could still lend to sessions over this unit."""
    queue: int = 0
    """Steps that wait now."""
    step_ms: float = 0.0
    """Typical milliseconds of one decode step over the whole unit."""
    block_ms: float = 0.0
    """Milliseconds of one token through one block, measured alone when the unit was loaded."""


NO_LOAD: Final = Load()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """One unit of one set of weights that a peer hosts, or is about to, and in which precision."""

    unit: Unit
    weights: Weights
    num_blocks: int
    """Blocks of the unit's stack in the whole model."""
    dtype: str
    """Compute dtype, e.g. `float32`; a route uses one."""
    quantization: str = "none"
    state: str = ""
    """One of STATES; empty = as its record's: a node that moves holds an old unit and a new one for a while."""
    load: Load = NO_LOAD
    capacity_blocks: int = 0
    """How many consecutive blocks of this model its peer could host instead, wherever the swarm needs them; 0 = it stays."""

    @property
    def is_blocks(self) -> bool:
        """Is it something that a route leads over: blocks of the decoder?"""
        return isinstance(self.unit, Blocks) and self.unit.stack == "decoder"

    @property
    def span(self) -> Span:
        """The numbers of its blocks. AssertionError for any other kind of unit."""
        assert isinstance(self.unit, Blocks), self.unit
        return self.unit.span

    @property
    def precision(self) -> tuple[str, str]:
        """What all hops of a route have in common: dtype and quantization."""
        return self.dtype, self.quantization

    def pack(self, weights: Sequence[Weights]) -> dict[str, object]:
        """The map that travels. weights: those that the record lists."""
        table: dict[str, object] = {"u": str(self.unit), "n": self.num_blocks, "d": self.dtype}
        table |= {"q": self.quantization} if self.quantization != "none" else {}
        more = {"w": weights.index(self.weights), "t": self.state, "f": self.load.free_tokens, "l": self.load.queue,
                "s": hundredths(self.load.step_ms), "b": hundredths(self.load.block_ms), "h": self.capacity_blocks}  # fmt: skip
        return table | {key: value for key, value in more.items() if value}

    @classmethod
    def parse(cls, value: object, weights: Sequence[Weights]) -> Hosted | None:
        """What a peer wrote; None for a kind of unit that a newer peer may have. BadRequestError if it is out of bounds."""
        table: dict[str, object] = {"q": "none", "t": "", **dict.fromkeys("wflsbh", 0), **fields.table(value, "hosted")}
        num_blocks = fields.integer(table, "n", 1, MAX_BLOCKS)
        unit = find_unit(fields.text(table, "u", MAX_UNIT_TEXT))
        if unit is not None and _num_needed(unit) > num_blocks:
            raise BadRequestError(f"a unit lies within the {num_blocks} blocks of its model, got {unit}")
        load = Load(
            free_tokens=fields.integer(table, "f", 0, MAX_COUNT),
            queue=fields.integer(table, "l", 0, MAX_QUEUE),
            step_ms=fields.integer(table, "s", 0, MAX_HUNDREDTHS) / 100,
            block_ms=fields.integer(table, "b", 0, MAX_HUNDREDTHS) / 100,
        )
        capacity_blocks = fields.integer(table, "h", 0, MAX_BLOCKS)
        index = fields.integer(table, "w", 0, len(weights) - 1)
        dtype, quantization = fields.text(table, "d", 16), fields.text(table, "q", 16)
        state = fields.one_of(table, "t", ("", *STATES))
        if unit is None:
            return None
        return cls(
            unit=unit, weights=weights[index], num_blocks=num_blocks, dtype=dtype, quantization=quantization,
            state=state, load=load, capacity_blocks=capacity_blocks,
        )  # fmt: skip


def hundredths(ms: float) -> int:
    """Milliseconds as they travel: in hundredths, rounded."""
    return min(round(ms * 100), MAX_HUNDREDTHS)


def _num_needed(unit: Unit) -> int:
    """The least number of blocks that a stack with this unit has."""
    if isinstance(unit, Ends):
        return 0
    return unit.stop if isinstance(unit, Blocks) else unit.layer + 1
