"""Sequences as pieces: what a boundary retains of each, oldest first.

A piece is a view of what was sent. Copies of a sequence share what they have in common, so that a copy costs the same for any length: a
step may copy a thousand sequences. The common part is an immutable chain of groups of pieces; what a sequence has added since is its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from protocols import tensors
from protocols.tensors import WireTensor

CHUNK = 64
"""Pieces that a group has at least, but for the first: groups are joined, so that a chain does not grow by a link a step. Pieces of fewer
tokens than this are short: `join` makes them one."""


class Piece(NamedTuple):
    """Consecutive tokens of one sequence: values [tokens, …] of one kind, and their positions if the caller set some. It takes 1 KB beside
    its values."""

    values: WireTensor
    positions: tuple[int, ...] | None = None
    kind: str = "hidden"

    @property
    def length(self) -> int:
        return self.values.shape[0]

    def part(self, start: int, stop: int) -> Piece:
        positions = None if self.positions is None else self.positions[start:stop]
        return Piece(tensors.cut(self.values, start, stop), positions, self.kind)

    @property
    def form(self) -> tuple[object, ...]:
        """Pieces of the same form can be one piece."""
        return self.kind, self.positions is None, self.values.dtype, self.values.codec, self.values.shape[1:]


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same tokens in as few pieces as can be; values are copied, so what they were views of becomes free."""
    return [_one(list(same)) for _, same in itertools.groupby(pieces, key=lambda piece: piece.form)]


def _one(pieces: list[Piece]) -> Piece:
    places = None if pieces[0].positions is None else tuple(place for piece in pieces for place in piece.positions or ())
    return Piece(tensors.join([piece.values for piece in pieces]), places, pieces[0].kind)


class _Chunk(NamedTuple):
    before: _Chunk | None
    pieces: tuple[Piece, ...]


class PieceRow:
    """One sequence's retained inputs."""

    __slots__ = ("_own", "_shared", "is_placed", "length", "num_bytes", "runs", "widest")

    def __init__(self) -> None:
        self.length = 0
        """Tokens of all pieces."""
        self.num_bytes = 0
        """Of their values."""
        self.runs: tuple[tuple[str, int], ...] = ()
        """Kinds and how many tokens of each follow each other: one, but for a thin client that sent embeddings and then ids."""
        self.is_placed = False
        """Some token has, or had, a position that its caller set."""
        self.widest = 1
        """Bytes of the widest token, of those cropped too."""
        self._shared: _Chunk | None = None
        self._own: list[Piece] = []

    @property
    def pieces(self) -> Iterator[Piece]:
        """Oldest first."""
        chunks: list[Sequence[Piece]] = [self._own]
        chunk = self._shared
        while chunk is not None:
            chunks.append(chunk.pieces)
            chunk = chunk.before
        for some in reversed(chunks):
            yield from some

    def append(self, piece: Piece) -> None:
        self._own.append(piece)
        count, kind = piece.length, piece.kind
        self.length += count
        self.num_bytes += piece.values.num_bytes
        if self.runs and self.runs[-1][0] == kind:
            self.runs = (*self.runs[:-1], (kind, self.runs[-1][1] + count))
        else:
            self.runs = (*self.runs, (kind, count))
        self.is_placed |= piece.positions is not None
        self.widest = max(self.widest, piece.values.token_bytes)

    def join(self, most: int) -> int:
        """Make one piece of the short ones at the end, `most` at most, as far as no copy of the sequence shares them.

        Returns how many they were.
        """
        start, least = len(self._own), max(0, len(self._own) - most)
        while start > least and self._own[start - 1].length < CHUNK:
            start -= 1
        count = len(self._own) - start
        self._own[start:] = joined(self._own[start:])
        return count

    def pop(self) -> Piece:
        """Take the last piece out."""
        if not self._own:
            shared = self._shared
            assert shared is not None, "an empty sequence has no last piece"
            self._own, self._shared = list(shared.pieces), shared.before
        piece = self._own.pop()
        kind, count = self.runs[-1]
        left = count - piece.length
        self.runs = (*self.runs[:-1], (kind, left)) if left else self.runs[:-1]
        self.length -= piece.length
        self.num_bytes -= piece.values.num_bytes
        return piece

    def fork(self) -> PieceRow:
        """A sequence with the same pieces."""
        self._share()
        twin = PieceRow()
        twin.length, twin.num_bytes, twin.runs, twin._shared = self.length, self.num_bytes, self.runs, self._shared
        twin.is_placed, twin.widest = self.is_placed, self.widest
        return twin

    def _share(self) -> None:
        """From now on the pieces that are here do not change."""
        if not self._own:
            return
        last, pieces = self._shared, tuple(self._own)
        if last is not None and len(last.pieces) < CHUNK:
            self._shared = _Chunk(last.before, last.pieces + pieces)
        else:
            self._shared = _Chunk(last, pieces)
        self._own = []

    def clear(self) -> None:
        self.length, self.num_bytes, self.runs, self._shared, self._own = 0, 0, (), None, []


class PieceStore:
    """Row operations on retained pieces."""

    def open(self) -> PieceRow:
        return PieceRow()

    def fork(self, row: PieceRow) -> PieceRow:
        return row.fork()

    def crop(self, row: PieceRow, tokens: int) -> None:
        while tokens:
            last = row.pop()
            if last.length > tokens:
                row.append(last.part(0, last.length - tokens))
            tokens -= min(tokens, last.length)

    def close(self, row: PieceRow) -> None:
        row.clear()
