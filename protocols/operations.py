"""Row operations: what a step does before it adds tokens.

They change the session's sequences.

Every hop applies them before the step that carries them, to K/V and to what it has retained (`swarm/inference/rows.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import fields
from protocols.defaults import MAX_OPS, MAX_ROW_INDICES, MAX_ROWS
from protocols.errors import BadRequestError, shown

MAX_LENGTH = 1 << 24
"""Tokens of one sequence."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The new sequences are copies of the old ones with these indices (beam search reorders, drops and repeats sequences)."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Every sequence becomes `times` neighbouring sequences."""

    times: int


@dataclass(frozen=True, slots=True)
class Crop:
    """Every sequence forgets its last `tokens` tokens (a refused speculation)."""

    tokens: int


Op = Rows | Repeat | Crop


def pack_op(op: Op) -> list[object]:
    match op:
        case Rows(indices):
            return ["rows", list(indices)]
        case Repeat(times):
            return ["repeat", times]
        case Crop(tokens):
            return ["crop", tokens]


def parse_ops(header: fields.Header) -> tuple[Op, ...]:
    """The operations of a step; BadRequestError if together they name more than MAX_ROW_INDICES sequences."""
    ops = tuple([parse_op(op) for op in fields.array(header, "ops", MAX_OPS)])
    if len(ops) > 1 and (num := sum([len(op.indices) for op in ops if isinstance(op, Rows)])) > MAX_ROW_INDICES:
        raise BadRequestError(f"the operations of one step name at most {MAX_ROW_INDICES} sequences, got {num}")
    return ops


def parse_op(value: object) -> Op:
    if not isinstance(value, list) or len(value) != 2:
        raise BadRequestError(f"a row operation is [name, argument], got {shown(value)}")
    argument = {"argument": value[1]}
    match value[0]:
        case "rows":
            return Rows(fields.integers(argument, "argument", MAX_ROWS, 0, MAX_ROWS - 1))
        case "repeat":
            return Repeat(fields.integer(argument, "argument", 1, MAX_ROWS))
        case "crop":
            return Crop(fields.integer(argument, "argument", 1, MAX_LENGTH))
    raise BadRequestError(f"an operation is `rows`, `repeat` or `crop`, got {shown(value[0])}")
