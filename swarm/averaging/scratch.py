"""What one member computes in an all-reduce, away from the event loop.

N values are cut into one slice per member that takes part, a slice into pieces of PIECE values. `reduce` is called for the pieces of the
own slice, in order, `take` for those of the others: each from one thread at a time. Nothing but this scratch is written.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy
import torch
from torch import Tensor

from protocols.averaging import Values
from protocols.defaults import MAX_PART_BYTES
from protocols.errors import TensorFormatError
from protocols.ids import PeerId, short_peer
from swarm.averaging import codec
from swarm.averaging.plan import MemberFailedError, Plan

PIECE = 1 << 18
"""Fewest values of a full piece, which travels in one frame: 1 MiB of float32."""

LARGEST_PIECE = MAX_PART_BYTES // 4 - codec.BLOCK
"""Most values of a piece: its frame is one message. A message costs 0.3 ms beside its bytes, so 100 MB take 0.87 s of processor time in
pieces of 1 MiB and 0.74 s in pieces of 4 MiB (two peers together)."""

PIPELINED = 8
"""Pieces of a slice, at least, if it has so many values: one is added while others travel."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Values [start, stop) of all N."""

    start: int
    stop: int

    @property
    def num_values(self) -> int:
        return self.stop - self.start


def pieces_of(start: int, stop: int, size: int | None = None) -> tuple[Piece, ...]:
    """size: of all but the last one; None = PIECE."""
    size = size or PIECE
    return tuple(Piece(at, min(at + size, stop)) for at in range(start, stop, size))


def piece_size(num_values: int, num_members: int) -> int:
    """Values of a piece, a multiple of `codec.BLOCK`. What a member sends to all others at once is 4 MiB, or 1 MiB to each: a slow line
    must bring it within a deadline."""
    most = LARGEST_PIECE // max(1, num_members - 1)
    wanted = min(most, num_values // num_members // PIPELINED)
    return max(PIECE, wanted // codec.BLOCK * codec.BLOCK)


def cut(num_values: int, num_members: int) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each member's slice; slices differ by one value at most."""
    edges = [num_values * number // num_members for number in range(num_members + 1)]
    size = piece_size(num_values, num_members)
    return tuple(pieces_of(start, stop, size) for start, stop in pairwise(edges))


class Scratch:
    """The reduced values of one attempt, as they come in, with what all members must have alike: norms and digests by slice."""

    def __init__(self, plan: Plan, codec_name: str, sums: Tensor | None, spare: Tensor | None = None) -> None:
        """sums: this member's own, float32 [N]; None if they are not included. spare: memory that is not used any more, float32 of any
        size; it is taken if it has N values. Fresh memory costs 60 ms for 100 MB, mostly the kernel's zeros."""
        self.codec = codec_name
        self._sums = sums
        self._edges = tuple(pairwise(accumulate(plan.num_values, initial=0)))
        self._num_slices = len(plan.taking_part)
        self.slices = cut(sum(plan.num_values), self._num_slices)
        size = sum(plan.num_values)
        is_fit = spare is not None and spare.shape == (size,)
        self.values = spare if spare is not None and is_fit else torch.empty(size, dtype=torch.float32)
        self.norms = [[0.0] * len(self._edges) for _ in self.slices]
        """Of each slice, each unit's sum of squares."""
        self._digests = [hashlib.sha256() for _ in self.slices]

    def contribution(self, piece: Piece) -> bytes:
        """The frame with a piece of our own sums."""
        assert self._sums is not None
        return Values(codec.encode(self._sums[piece.start : piece.stop], self.codec)).encode()

    def reduce(self, place: int, piece: Piece, parts: Sequence[tuple[PeerId, memoryview | None]]) -> bytes:
        """Add the parts in this order (None: our own), encode once, and keep what all members will decode; the frame for them.

        MemberFailedError names the member whose part is not what it must be; TensorFormatError if the sum is not finite.
        """
        total = self.values[piece.start : piece.stop]
        add = self._reduce_plainly if self.codec == "float32" else self._reduce_encoded
        encoded = add(piece, parts, total)
        self._digests[place].update(encoded)
        for unit, norm in enumerate(self._squares(piece)):
            self.norms[place][unit] += norm
        return Values(encoded).encode()

    def _reduce_plainly(self, piece: Piece, parts: Sequence[tuple[PeerId, memoryview | None]], total: Tensor) -> memoryview:
        """Without a codec nothing is copied, and a value that is not finite is looked for in the parts if the sum has one."""
        into: Any = total.numpy()
        values = [self._plain(author, data, piece) for author, data in parts]
        with numpy.errstate(all="ignore"):
            if len(values) > 1:
                numpy.add(values[0], values[1], out=into)
            else:
                into[:] = values[0]
            for more in values[2:]:
                numpy.add(into, more, out=into)
        try:
            return codec.encode(total, "float32")
        except TensorFormatError:
            for (author, _), part in zip(parts, values, strict=True):
                with _blaming(author):
                    codec.encode(torch.from_numpy(part.copy()), "float32")
            raise

    def _plain(self, author: PeerId, data: memoryview | None, piece: Piece) -> Any:
        """A part's values, to be read only: numpy does not warn of bytes that must not be written to."""
        if data is None:
            assert self._sums is not None
            return self._sums[piece.start : piece.stop].numpy()
        if len(data) != 4 * piece.num_values:
            raise MemberFailedError(author, f"the part of {short_peer(author)} has {len(data)} bytes, not {4 * piece.num_values}")
        return numpy.frombuffer(data, dtype="<f4")

    def _reduce_encoded(self, piece: Piece, parts: Sequence[tuple[PeerId, memoryview | None]], total: Tensor) -> memoryview:
        """Our own part takes the same way as all others: it is rounded as they are."""
        part = torch.empty_like(total)
        for number, (author, data) in enumerate(parts):
            into = part if number else total
            with _blaming(author):
                own = None if self._sums is None else self._sums[piece.start : piece.stop]
                assert data is not None or own is not None
                codec.decode(codec.encode(own, self.codec) if data is None else data, self.codec, into)  # type: ignore[arg-type]
            if number:
                total.add_(part)
        encoded = codec.encode(total, self.codec)
        codec.decode(encoded, self.codec, total)
        return encoded

    def _squares(self, piece: Piece) -> list[float]:
        found = []
        for start, stop in self._edges:
            start, stop = max(start, piece.start), min(stop, piece.stop)
            wide = self.values[start:stop].double() if start < stop else None
            found.append(float(torch.dot(wide, wide)) if wide is not None else 0.0)
        return found

    def take(self, place: int, piece: Piece, data: memoryview) -> None:
        """Keep a reduced piece of another member's slice. TensorFormatError if it is not one."""
        codec.decode(data, self.codec, self.values[piece.start : piece.stop])
        self._digests[place].update(data)

    def pack_norms(self, place: int) -> bytes:
        return struct.pack(f"<{len(self._edges)}d", *self.norms[place])

    def take_norms(self, place: int, data: memoryview) -> bool:
        """The norms of another member's slice; False if these are none."""
        if len(data) != 8 * len(self._edges):
            return False
        self.norms[place] = list(struct.unpack(f"<{len(self._edges)}d", data))
        return all(0 <= norm < float("inf") for norm in self.norms[place])

    def unit_norms(self) -> list[float]:
        """Of each unit over all slices, added in their order."""
        return [sum(norms) for norms in zip(*self.norms, strict=True)]

    def digest(self, extras: Sequence[Tensor]) -> bytes:
        """Over all slices, norms and extras."""
        whole = hashlib.sha256()
        for place, of_slice in enumerate(self._digests):
            whole.update(of_slice.digest() + self.pack_norms(place))
        for extra in extras:
            whole.update(hashlib.sha256(codec.encode(extra, "float32")).digest())
        return whole.digest()


@contextmanager
def _blaming(author: PeerId) -> Iterator[None]:
    """A part that is not what it must be is a failure of the member that sent it."""
    try:
        yield
    except TensorFormatError as error:
        raise MemberFailedError(author, f"the part of {short_peer(author)}: {error}") from None
