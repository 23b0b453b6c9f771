"""A part of a stored tensor: its byte ranges and their pieces.

A cut along axis 0 is one range; a cut along a later axis is one range for each index of the axes before it. Pieces are 1 MiB and hashed
whole, so a part is fetched with at most one piece more at each edge of a range. If each matrix row is shorter than a piece, columns of
the matrix take all of its pieces. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from protocols.errors import BadRequestError
from protocols.weights import ITEM_BYTES, PIECE_BYTES

MAX_RANGES: Final = 1 << 20
"""Byte ranges of one part. Columns take one range for each matrix row."""


class Stored(Protocol):
    """`protocols.weights.TensorEntry`, or `swarm.checkpoints.stored.TensorInfo`."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Indices `[start, stop)` along one axis."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorPart:
    """One stored tensor, by its name in the checkpoint, or a cut of it."""

    name: str
    cut: Cut | None = None
    """None = all of it."""


@dataclass(frozen=True, slots=True)
class ByteRanges:
    """`count` ranges of `length` bytes, the first at `first`, each `stride` bytes behind the one before; none overlaps another."""

    first: int
    length: int
    stride: int
    count: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each, in order; ranges without a byte are left out."""
        for start in range(self.first, self.first + self.stride * self.count, self.stride) if self.num_bytes else ():
            yield start, start + self.length

    def pieces(self) -> tuple[range, ...]:
        """The pieces that hold one of these bytes, as runs of consecutive ones, in order."""
        runs: list[range] = []
        for start, stop in self:
            first, behind = start // PIECE_BYTES, -(-stop // PIECE_BYTES)
            if runs and first <= runs[-1].stop:
                runs[-1] = range(runs[-1].start, behind)
            else:
                runs.append(range(first, behind))
        return tuple(runs)


def byte_ranges(tensor: Stored, cut: Cut | None) -> ByteRanges:
    """Where a part lies within the tensor's bytes (row-major). BadRequestError: beyond the tensor, or more than MAX_RANGES ranges."""
    num_bytes = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if cut is None:
        return ByteRanges(0, num_bytes, max(1, num_bytes), 1)
    shape = tensor.shape
    if not 0 <= cut.axis < len(shape) or not 0 <= cut.start < cut.stop <= shape[cut.axis]:
        raise BadRequestError(f"tensor {tensor.name!r} has shape {list(shape)}: no {cut.start}:{cut.stop} along axis {cut.axis}")
    inner = math.prod(shape[cut.axis + 1 :]) * ITEM_BYTES[tensor.dtype]
    count, stride = math.prod(shape[: cut.axis]), max(1, shape[cut.axis] * inner)
    if count > MAX_RANGES:
        raise BadRequestError(
            f"{cut.start}:{cut.stop} along axis {cut.axis} of tensor {tensor.name!r} is {count} byte ranges, at most {MAX_RANGES} "
            "are fetched; take the whole tensor, or cut along an earlier axis"
        )
    return ByteRanges(cut.start * inner, (cut.stop - cut.start) * inner, stride, count)
