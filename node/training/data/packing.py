"""Cuts the documents of a source into sequences of T tokens.

Two ways, both computed on demand from the borders of the documents, so sequence n costs the same for every n:

- `Packed`: the source is one line of tokens, cut every T; several documents share a sequence, and a long one goes on in the next.
- `Windows`: a sequence is a part of one document, filled up with padding.

In both, each token but the first of its document is a target of exactly one sequence (if it may be one), and no target crosses a border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.training.data.micro_batch import NO_TARGET, Ids
from node.training.data.token_data import TokenSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequence:
    """One sequence; the arrays are int32 [T] as in `MicroBatch`."""

    ids: Ids
    labels: Ids
    positions: Ids


class Sequences(Protocol):
    """The sequences of one source, by number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Sequence: ...


def sequences_of(source: TokenSource, length: int, packing: bool, pad_id: int) -> Sequences:
    """Sequences of `length` tokens."""
    return Packed(source, length, pad_id) if packing else Windows(source, length, pad_id)


class Packed:
    """Documents one after the other, without attention across them: positions begin at 0 in each, and at each sequence's beginning."""

    def __init__(self, source: TokenSource, length: int, pad_id: int) -> None:
        self._source, self._length, self._pad_id = source, length, pad_id

    def __len__(self) -> int:
        return -(-len(self._source.tokens) // self._length)

    def read(self, number: int) -> Sequence:
        """The last sequence is filled up with padding."""
        ends, start = self._source.ends, number * self._length
        stop = min(start + self._length, len(self._source.tokens))
        first, last = np.searchsorted(ends, [start, stop], side="right")
        borders = ends[first:last] - start  # each in 1 … stop - start
        found = _cut(self._source, start, stop, len(self._source.tokens), self._length, self._pad_id)
        found.labels[borders - 1] = NO_TARGET
        begins = np.concatenate([[0], borders[borders < stop - start]])
        found.positions[:] -= np.repeat(begins, np.diff(begins, append=self._length)).astype(np.int32)
        return found


class Windows:
    """Each document alone: its tokens [0, T), [T, 2T), … are sequences. A document of one token has no target, and no sequence."""

    def __init__(self, source: TokenSource, length: int, pad_id: int) -> None:
        self._source, self._length, self._pad_id = source, length, pad_id
        sizes = np.diff(source.ends, prepend=0)
        self._windows_up_to: NDArray[np.int64] = np.cumsum((sizes - 2) // length + 1, dtype=np.int64)
        """[D]: sequences of the documents up to and with d; (1 - 2) // T + 1 is 0."""

    def __len__(self) -> int:
        return int(self._windows_up_to[-1]) if len(self._windows_up_to) else 0

    def read(self, number: int) -> Sequence:
        document = int(np.searchsorted(self._windows_up_to, number, side="right"))
        ends, before = self._source.ends, int(self._windows_up_to[document - 1]) if document else 0
        begin, end = int(ends[document - 1]) if document else 0, int(ends[document])
        start = begin + (number - before) * self._length
        return _cut(self._source, start, min(start + self._length, end), end, self._length, self._pad_id)


def _cut(source: TokenSource, start: int, stop: int, end: int, length: int, pad_id: int) -> Sequence:
    """Tokens [start, stop) with the tokens after them as labels, none from `end` on; padded to `length`, positions 0 … length - 1."""
    ids, labels = np.full(length, pad_id, np.int32), np.full(length, NO_TARGET, np.int32)
    ids[: stop - start] = source.tokens[start:stop]
    after = slice(start + 1, min(stop + 1, end))
    labels[: after.stop - after.start] = source.tokens[after]
    if source.targets is not None:
        labels[: after.stop - after.start][source.targets[after] == 0] = NO_TARGET
    return Sequence(ids=ids, labels=labels, positions=np.arange(length, dtype=np.int32))
