"""Row operations, applied to any kind of row: K/V on a device, retained history at a boundary.

A session's rows are one list everywhere; this file is the one place that says what `rows`, `repeat` and `crop` do to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from protocols.defaults import MAX_ROWS
from protocols.errors import BadRequestError
from protocols.inference import Crop, Op, Repeat, Rows
from protocols.words import counted


class Row(Protocol):
    """What row operations need to know about a row."""

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        ...


R = TypeVar("R", bound=Row)


class RowStore(Protocol[R]):
    """What row operations do with rows of one kind."""

    def open(self) -> R:
        """A row that holds nothing."""
        ...

    def fork(self, row: R) -> R:
        """A second row with the same content; the two part ways from here."""
        ...

    def crop(self, row: R, tokens: int) -> None:
        """Forget the row's last `tokens` tokens; it has as many."""
        ...

    def close(self, row: R) -> None:
        """The row's memory goes back; a second call changes nothing."""
        ...


def apply(store: RowStore[R], rows: Sequence[R], ops: Sequence[Op]) -> list[R]:
    """The rows after `ops`. A row that is used once is kept, not copied; one that is used no more is closed.

    BadRequestError names an operation that does not fit. After any error all rows are closed, copies included: the session is lost
    here, and nothing of it leaks.
    """
    current = list(rows)
    try:
        for op in ops:
            match op:
                case Rows(indices):
                    current = _select(store, current, indices)
                case Repeat(times):
                    _check_count(len(current) * times)
                    current = _select(store, current, [index for index in range(len(current)) for _ in range(times)])
                case Crop(tokens):
                    _crop(store, current, tokens)
    except BaseException:
        for row in current:
            store.close(row)
        raise
    return current


def _select(store: RowStore[R], rows: list[R], indices: Sequence[int]) -> list[R]:
    _check_count(len(indices))
    if any(not 0 <= index < len(rows) for index in indices):
        raise BadRequestError(f"row indices must be below {len(rows)}, got {list(indices)[:16]}")
    used: set[int] = set()
    selected: list[R] = []
    forks: list[R] = []
    try:
        for index in indices:
            if index in used:
                forks.append(store.fork(rows[index]))
            selected.append(forks[-1] if index in used else rows[index])
            used.add(index)
    except BaseException:  # no memory for one more copy: the copies made so far belong to nobody else
        for row in forks:
            store.close(row)
        raise
    for index, row in enumerate(rows):
        if index not in used:
            store.close(row)
    return selected


def _crop(store: RowStore[R], rows: Sequence[R], tokens: int) -> None:
    shortest = min((row.length for row in rows), default=tokens)
    if tokens > shortest:
        raise BadRequestError(f"cannot crop {counted(tokens, 'token')} of a row that has {shortest}")
    for row in rows:
        store.crop(row, tokens)


def _check_count(num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise BadRequestError(f"a session has at most {MAX_ROWS} rows, this operation asks for {num_rows}")


def enter(store: RowStore[R], rows: Sequence[R], num_rows: int) -> list[R]:
    """The rows of a step that brings `num_rows` counts: opened where there are none yet; BadRequestError where they disagree."""
    if not rows:
        return [store.open() for _ in range(num_rows)]
    if len(rows) != num_rows:
        raise BadRequestError(f"the session has {counted(len(rows), 'row')}, the step brings counts for {num_rows}")
    return list(rows)
