"""Keys and values of packed rows: each row owns one growing buffer per block; a fork shares its parent's until one of them writes.

A buffer grows to half as much again as is needed (copies amortise; about a third is slack), or to the bare need where memory is
short. Bytes are reserved for a whole step before anything is computed, so a refusal leaves every row as it was.

On a CPU, memory that nobody has written to yet costs nothing: tensors there are made longer than what is booked, and a row grows in
place. Copied instead, a row of 1,000 tokens kept all others waiting for 670 ms; and with huge pages, one of 32 tokens would fill 247 MB
instead of 6 (docs/log.md).

Rows that share a buffer differ in length only. The row whose length equals `used` may write on in place, since the others never look
beyond their own length; any other one copies first. So a beam that is forked and goes on alone costs nothing.

Shapes: N kv heads, E extent in tokens, K and V head sizes: keys [1, N, E, K], values [1, N, E, V] a block, as attention
takes them: every view more is an operation a token and block.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protocols.errors import CacheFullError
from protocols.words import counted

Mode = Literal["packed", "paged", "serial"]
"""The ways in which an engine serves."""

Chunking = Literal["always", "after_first", "never"]
"""Steps that may be run in parts: all; those of rows that have tokens already (and go on token by token anyway); none."""

GROW_TOKENS = 64
"""Capacities are multiples of this."""

CPU_EXTENT_TOKENS = 4_096
"""How far a row grows in place on a CPU at least; a longer one has twice what it needs."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What one block keeps for a token, measured from its first write: families differ, and K and V differ in MLA ones."""

    num_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return self.num_heads * (self.key_size + self.value_size) * self.dtype.itemsize


class Buffer:
    """Memory for up to `capacity` tokens in every block; the first `used` of them hold somebody's values.

    Its tensors have room for `extent` tokens, of which those beyond the capacity are not booked and not touched.
    """

    __slots__ = ("capacity", "extent", "keys", "refs", "used", "values")

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.capacity = 0
        self.extent = 0
        self.used = 0
        self.refs = 1


class PackedSequence:
    """One sequence: its buffer, and how many tokens of it are this row's."""

    __slots__ = ("buffer", "length")

    def __init__(self) -> None:
        self.buffer: Buffer | None = None
        self.length = 0


@dataclass(frozen=True, slots=True)
class _Growth:
    """A row that needs more memory before it can write: `capacity` tokens, in place of `freed_tokens` that only it held."""

    row: PackedSequence
    capacity: int
    freed_tokens: int


class SequenceStore:
    """Lends buffers to rows within `limit_bytes`."""

    def __init__(self, shapes: Sequence[BlockShape], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._shapes = tuple(shapes)
        self._token_bytes = sum(shape.token_bytes for shape in shapes)

    def growth_bytes(self, items: Sequence[tuple[PackedSequence, int]]) -> int:
        """Bytes that `reserve(items)` would newly take."""
        return self._bytes(self._fitting(items))

    def reserve(self, items: Sequence[tuple[PackedSequence, int]]) -> None:
        """Make room for n new tokens of each row; CacheFullError before anything changed."""
        growths = self._fitting(items)
        if growths:
            needed = self._bytes(growths)
            if needed > self.limit_bytes - self.used_bytes:
                raise CacheFullError(
                    f"no memory for {counted(sum(count for _, count in items), 'more token')}: they take {needed} bytes, "
                    f"{self.limit_bytes - self.used_bytes} of {self.limit_bytes} are free; end a session, or ask another peer"
                )
            for growth in growths:
                self._grow(growth.row, growth.capacity)
        for row, count in items:
            assert row.buffer is not None
            row.buffer.used = row.length + count

    def fork(self, row: PackedSequence) -> PackedSequence:
        """A row with the same tokens; memory is taken when one of the two writes."""
        twin = PackedSequence()
        twin.length, twin.buffer = row.length, row.buffer
        if row.buffer is not None:
            row.buffer.refs += 1
        return twin

    def crop(self, row: PackedSequence, count: int) -> None:
        """Drop the last `count` tokens; memory goes back once most of the buffer is idle."""
        row.length -= count
        if row.length == 0:
            self.close(row)
        elif row.buffer is not None and row.buffer.refs == 1:
            row.buffer.used = row.length
            if row.buffer.capacity > 2 * _roomy(row.length):
                self._move(row, _roomy(row.length))

    def close(self, row: PackedSequence) -> None:
        """Give the row's memory back, or its share of it."""
        self._drop(row)
        row.length = 0

    def _fitting(self, items: Sequence[tuple[PackedSequence, int]]) -> list[_Growth]:
        growths = self._growths(items, roomy=True)
        if growths and self._bytes(growths) > self.limit_bytes - self.used_bytes:
            growths = self._growths(items, roomy=False)
        return growths

    def _growths(self, items: Sequence[tuple[PackedSequence, int]], *, roomy: bool) -> list[_Growth]:
        """Which rows cannot write where they are, in the order of `items` (an earlier row may take or leave a shared buffer)."""
        growths = []
        used: dict[int, int] = {}
        left: dict[int, int] = {}
        for row, count in items:
            buffer, need = row.buffer, row.length + count
            if buffer is not None:
                key = id(buffer)
                refs = left.get(key, buffer.refs)
                in_place = refs == 1 or used.get(key, buffer.used) == row.length
                if in_place and need <= buffer.capacity:
                    used[key] = need
                    continue
                left[key] = refs - 1
                freed = buffer.capacity if refs == 1 else 0
            else:
                freed = 0
            growths.append(_Growth(row, _roomy(need) if roomy else _tight(need), freed))
        return growths

    def _bytes(self, growths: Sequence[_Growth]) -> int:
        return sum(growth.capacity - growth.freed_tokens for growth in growths) * self._token_bytes

    def _grow(self, row: PackedSequence, capacity: int) -> None:
        """Let the row have `capacity` tokens: in place where its tensors are long enough and nobody shares them."""
        buffer = row.buffer
        if buffer is None or buffer.refs > 1 or capacity > buffer.extent:
            self._move(row, capacity)
            return
        self.used_bytes += (capacity - buffer.capacity) * self._token_bytes
        buffer.capacity = capacity

    def _move(self, row: PackedSequence, capacity: int) -> None:
        """Give the row a buffer of its own with `capacity` tokens. All of it is allocated before anything is let go."""
        old, new, length = row.buffer, self._allocate(capacity), row.length
        if old is not None:
            for target, source in zip((*new.keys, *new.values), (*old.keys, *old.values), strict=True):
                target[:, :, :length] = source[:, :, :length]
        self._drop(row)
        new.used, row.buffer = length, new
        self.used_bytes += capacity * self._token_bytes

    def _allocate(self, capacity: int) -> Buffer:
        """A buffer for so many tokens, with room to grow where that costs nothing and the process may have so much address space."""
        if all(shape.device.type == "cpu" for shape in self._shapes):
            with contextlib.suppress(OSError):
                return self._buffer(capacity, max(CPU_EXTENT_TOKENS, 2 * capacity), _untouched)
        try:
            return self._buffer(capacity, capacity, _at_hand)
        except (RuntimeError, MemoryError) as error:  # the device has less memory than it promised
            raise CacheFullError(
                f"the device has no memory for {counted(capacity, 'token')} of a row; ask another peer"
            ) from error

    def _buffer(self, capacity: int, extent: int, tensor: Callable[[BlockShape, int, int], Tensor]) -> Buffer:
        buffer = Buffer()
        buffer.capacity, buffer.extent = capacity, extent
        buffer.keys = [tensor(shape, extent, shape.key_size) for shape in self._shapes]
        buffer.values = [tensor(shape, extent, shape.value_size) for shape in self._shapes]
        return buffer

    def _drop(self, row: PackedSequence) -> None:
        buffer, row.buffer = row.buffer, None
        if buffer is not None:
            buffer.refs -= 1
            if buffer.refs == 0:
                self.used_bytes -= buffer.capacity * self._token_bytes


def _at_hand(shape: BlockShape, extent: int, size: int) -> Tensor:
    return torch.empty(1, shape.num_heads, extent, size, dtype=shape.dtype, device=shape.device)


def _untouched(shape: BlockShape, extent: int, size: int) -> Tensor:
    """Pages of its own that take memory as they are written to, a small one at a time, and all go back with the tensor. OSError."""
    num_bytes = shape.num_heads * extent * size * shape.dtype.itemsize
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that knows no huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=shape.dtype).view(1, shape.num_heads, extent, size)


def _tight(need: int) -> int:
    return -(-need // GROW_TOKENS) * GROW_TOKENS


def _roomy(need: int) -> int:
    return _tight(max(need + GROW_TOKENS, need * 3 // 2))
