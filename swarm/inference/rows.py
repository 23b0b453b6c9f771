"""Row operations, applied to any kind of row: K/V on a device, retained history at a boundary.

A session's rows are one list everywhere; this file is the one place that says what `rows`, `repeat` and `crop` do to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from protocols.defaults import MAX_ROWS
from protocols.errors import BadRequestError
from protocols.inference import Crop, Op, Repeat, Rows

R = TypeVar("R")


class RowStore(Protocol[R]):
    """What row operations need to know about rows of one kind."""

    def open(self) -> R:
        """A row that holds nothing."""
        ...

    def fork(self, row: R) -> R:
        """A second row with the same content; the two part ways from here."""
        ...

    def crop(self, row: R, tokens: int) -> None:
        """Forget the row's last `tokens` tokens; BadRequestError if it has fewer."""
        ...

    def close(self, row: R) -> None:
        """The row's memory goes back."""
        ...


def apply(store: RowStore[R], rows: Sequence[R], ops: Sequence[Op]) -> list[R]:
    """The rows after `ops`. A row that is used once is kept, not copied; one that is used no more is closed.

    BadRequestError names an operation that does not fit; rows may then be half changed, and the session is to be dropped.
    """
    current = list(rows)
    for op in ops:
        match op:
            case Rows(indices):
                current = _select(store, current, indices)
            case Repeat(times):
                current = _select(store, current, [index for index in range(len(current)) for _ in range(times)])
            case Crop(tokens):
                for row in current:
                    store.crop(row, tokens)
    return current


def _select(store: RowStore[R], rows: list[R], indices: Sequence[int]) -> list[R]:
    if len(indices) > MAX_ROWS or any(index >= len(rows) for index in indices):
        raise BadRequestError(f"row indices must be below {len(rows)}, and at most {MAX_ROWS}, got {list(indices)[:16]}")
    used: set[int] = set()
    selected = []
    for index in indices:
        selected.append(store.fork(rows[index]) if index in used else rows[index])
        used.add(index)
    for index, row in enumerate(rows):
        if index not in used:
            store.close(row)
    return selected


def enter(store: RowStore[R], rows: Sequence[R], num_rows: int) -> list[R]:
    """The rows of a step that brings `num_rows` counts: opened where there are none yet; BadRequestError where they disagree."""
    if not rows:
        return [store.open() for _ in range(num_rows)]
    if len(rows) != num_rows:
        raise BadRequestError(f"the session has {len(rows)} rows, the step brings counts for {num_rows}")
    return list(rows)
