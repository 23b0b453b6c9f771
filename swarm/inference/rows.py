"""Row operations, applied to any kind of sequence.

K/V on a device, retained history at a boundary.

A session's sequences (`rows` in code) are one list everywhere; only this file says what `rows`, `repeat` and `crop` do to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from protocols.defaults import MAX_COPIED_TOKENS, MAX_ROWS
from protocols.errors import BadRequestError
from protocols.inference import Crop, Op, Repeat, Rows
from protocols.words import counted


class Row(Protocol):
    """What row operations need to know about a sequence."""

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        ...


R = TypeVar("R", bound=Row)


class RowStore(Protocol[R]):
    """What row operations do with sequences of one kind."""

    def open(self) -> R:
        """A sequence that holds nothing."""
        ...

    def fork(self, row: R) -> R:
        """A second sequence with the same content, independent from here on."""
        ...

    def crop(self, row: R, tokens: int) -> None:
        """Forget the sequence's last `tokens` tokens; it has as many."""
        ...

    def close(self, row: R) -> None:
        """Free the sequence's memory; a second call changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What all operations of a step come to: which sequence each new one is made of, and how many tokens all of them lose."""

    sources: tuple[int, ...]
    crop: int
    num_copied_tokens: int
    """Of sequences that are used more than once; one that is used once is kept."""


def plan(lengths: Sequence[int], ops: Sequence[Op]) -> Plan:
    """The operations as one, so that a sequence which a later operation drops is never copied. BadRequestError names one that does not fit.

    lengths: tokens of each sequence before them. Every crop is of all sequences, so all that remain have lost the same.
    """
    sources, crop = list(range(len(lengths))), 0
    for op in ops:
        match op:
            case Rows(indices):
                _check_indices(len(sources), indices)
                sources = [sources[index] for index in indices]
            case Repeat(times):
                _check_count(len(sources) * times)
                sources = [source for source in sources for _ in range(times)]
            case Crop(tokens):
                shortest = min([lengths[source] for source in set(sources)], default=tokens + crop) - crop
                if tokens > shortest:
                    raise BadRequestError(f"cannot crop {counted(tokens, 'token')} of a sequence that has {shortest}")
                crop += tokens
    used = set(sources)
    copied = sum([lengths[source] - crop for source in sources]) - sum([lengths[source] - crop for source in used])
    if copied > MAX_COPIED_TOKENS:
        raise BadRequestError(
            f"the row operations of one step copy at most {MAX_COPIED_TOKENS} tokens, these would copy {copied}: "
            "use fewer or shorter sequences"
        )
    return Plan(tuple(sources), crop, copied)


def apply(store: RowStore[R], rows: Sequence[R], ops: Sequence[Op]) -> list[R]:
    """The sequences after `ops`. Each is copied at most once; one that is used once is kept, one that is used no more is closed.

    BadRequestError names an operation that does not fit. After any error all sequences are closed, copies included: the session is lost
    here, and nothing of it leaks.
    """
    if not ops:
        return list(rows)
    made = list(rows)
    try:
        what = plan([row.length for row in rows], ops)
        return _carry_out(store, rows, what, made)
    except BaseException:  # perhaps there is no memory for one more copy
        for row in made:
            store.close(row)
        raise


def _carry_out(store: RowStore[R], rows: Sequence[R], what: Plan, made: list[R]) -> list[R]:
    """Copies are noted in `made`, which belongs to the caller."""
    used = set(what.sources)
    for index, row in enumerate(rows):
        if index not in used:
            store.close(row)
        elif what.crop:
            store.crop(row, what.crop)
    selected: list[R] = []
    for index in what.sources:
        if index in used:
            selected.append(rows[index])
            used.remove(index)
        else:
            made.append(store.fork(rows[index]))
            selected.append(made[-1])
    return selected


def left_out(rows: Sequence[Row], tokens: int) -> int:
    """Last tokens that a fork with the first `tokens` tokens of the only sequence leaves out; 0: it takes all sequences as they are.

    BadRequestError if there are several sequences, or fewer tokens.
    """
    if not tokens:
        return 0
    lengths = [row.length for row in rows]
    if len(lengths) != 1 or lengths[0] < tokens:
        raise BadRequestError(f"a fork wants the first {counted(tokens, 'token')} of one sequence, here are {lengths[:8]}")
    return lengths[0] - tokens


def _check_indices(num_rows: int, indices: Sequence[int]) -> None:
    _check_count(len(indices))
    if indices and not 0 <= min(indices) <= max(indices) < num_rows:
        raise BadRequestError(f"indices of sequences must be below {num_rows}, got {list(indices)[:16]}")


def _check_count(num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise BadRequestError(f"a session has at most {MAX_ROWS} sequences, this operation asks for {num_rows}")


def enter(store: RowStore[R], rows: Sequence[R], num_rows: int) -> list[R]:
    """The sequences of a step that brings `num_rows` counts: opened if there are none yet; BadRequestError if they disagree."""
    if not rows:
        return [store.open() for _ in range(num_rows)]
    if len(rows) != num_rows:
        raise BadRequestError(f"the session has {counted(len(rows), 'sequence')}, the step brings counts for {num_rows}")
    return list(rows)
