"""What one member computes in an all-reduce, away from the event loop.

N values are cut into one slice per member that takes part, a slice into pieces of PIECE values. `reduce` is called for the pieces of the
own slice, in order, `take` for those of the others: each from one thread at a time. Nothing but this scratch is written.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from protocols.averaging import Values
from protocols.errors import TensorFormatError
from protocols.ids import PeerId, short_peer
from swarm.averaging import codec
from swarm.averaging.plan import MemberFailedError, Plan

PIECE = 1 << 18
"""Values that travel in one frame: 1 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Values [start, stop) of all N."""

    start: int
    stop: int

    @property
    def num_values(self) -> int:
        return self.stop - self.start


def pieces_of(start: int, stop: int) -> tuple[Piece, ...]:
    return tuple(Piece(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE))


def cut(num_values: int, num_members: int) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each member's slice; slices differ by one value at most."""
    edges = [num_values * number // num_members for number in range(num_members + 1)]
    return tuple(pieces_of(start, stop) for start, stop in pairwise(edges))


class Scratch:
    """The reduced values of one attempt, as they come in, with what all members must have alike: norms and digests by slice."""

    def __init__(self, plan: Plan, codec_name: str, sums: Tensor | None) -> None:
        """sums: this member's own, float32 [N]; None if they are not included."""
        self.codec = codec_name
        self._sums = sums
        self._edges = tuple(pairwise(accumulate(plan.num_values, initial=0)))
        self._num_slices = len(plan.taking_part)
        self.slices = cut(sum(plan.num_values), self._num_slices)
        self.values = torch.empty(sum(plan.num_values), dtype=torch.float32)
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
        part = torch.empty_like(total)
        for number, (author, data) in enumerate(parts):
            into = part if number else total
            try:
                if data is not None:
                    codec.decode(data, self.codec, into)
                else:
                    self._own(piece, into)
            except TensorFormatError as error:
                raise MemberFailedError(author, f"the part of {short_peer(author)}: {error}") from None
            if number:
                total.add_(part)
        encoded = codec.encode(total, self.codec)
        if self.codec != "float32":
            codec.decode(encoded, self.codec, total)
        self._digests[place].update(encoded)
        for unit, norm in enumerate(self._squares(piece)):
            self.norms[place][unit] += norm
        return Values(encoded).encode()

    def _own(self, piece: Piece, into: Tensor) -> None:
        """Our own part takes the same way as all others: it is rounded as they are."""
        assert self._sums is not None
        own = self._sums[piece.start : piece.stop]
        codec.decode(codec.encode(own, self.codec), self.codec, into)

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
