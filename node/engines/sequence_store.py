"""Keys and values of packed sequences: one growing buffer for each.

A fork shares its parent's buffer until one of the two writes. A buffer grows to half as much again as is needed (copies amortise; about a
third is slack), or to the bare need if memory is short. Bytes are reserved for a whole step before anything is computed, so a refusal
leaves every sequence as it was.

On a CPU, memory that was never written costs nothing. So tensors there are longer than the bytes that are booked, and a sequence grows in
place. Before, copying a sequence of 1,000 tokens kept all others waiting for 670 ms. With huge pages, a sequence of 32 tokens would fill
247 MB instead of 6 (docs/log.md).

Sequences that share a buffer differ in length only. The one whose length equals `used` may write in place, since the others never look
beyond their own length; every other one copies first. So a beam that is forked and goes on alone costs nothing.

Shapes: N kv heads, E extent in tokens, K and V head sizes: keys [1, N, E, K], values [1, N, E, V] a block, as attention takes them; each
view would cost an operation for every token and block.
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
"""Names of the kinds of engine, as they are shown to people."""

Chunking = Literal["always", "after_first", "never"]
"""Steps that may run as several prefill chunks: all; those of sequences that already have tokens (which run token by token); none."""

GROW_TOKENS = 64
"""Tokens by which capacities are rounded up."""

CPU_EXTENT_TOKENS = 4_096
"""Tokens to which a sequence grows in place on a CPU, at least; the tensors of a longer one have twice its need."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What one block keeps for a token. It is measured, because families differ, and K and V differ in MLA ones."""

    num_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return self.num_heads * (self.key_size + self.value_size) * self.dtype.itemsize


class Buffer:
    """Memory for up to `capacity` tokens in every block; the first `used` of them are written, by one of the `refs` sequences.

    Its tensors are `extent` tokens long; memory beyond the capacity is not booked and not touched.
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
    """One sequence: its buffer, perhaps shared, and its number of tokens there."""

    __slots__ = ("buffer", "length")

    def __init__(self) -> None:
        self.buffer: Buffer | None = None
        self.length = 0


@dataclass(frozen=True, slots=True)
class _Growth:
    """A sequence that needs memory before it can write: `capacity` tokens, instead of `freed_tokens` that no other sequence uses."""

    sequence: PackedSequence
    capacity: int
    freed_tokens: int


class SequenceStore:
    """Gives buffers to sequences, `used_bytes` in all, within `limit_bytes`."""

    def __init__(self, shapes: Sequence[BlockShape], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._shapes = tuple(shapes)
        self._token_bytes = sum(shape.token_bytes for shape in shapes)

    def growth_bytes(self, items: Sequence[tuple[PackedSequence, int]]) -> int:
        """Bytes that `reserve(items)` would newly take."""
        return self._bytes(self._fitting(items))

    def reserve(self, items: Sequence[tuple[PackedSequence, int]]) -> None:
        """Book memory for `count` new tokens of each (sequence, count). CacheFullError if the limit is too low: nothing changed."""
        growths = self._fitting(items)
        if growths:
            needed = self._bytes(growths)
            if needed > self.limit_bytes - self.used_bytes:
                raise CacheFullError(
                    f"no memory for {counted(sum(count for _, count in items), 'more token')}: they take {needed} bytes, "
                    f"{self.limit_bytes - self.used_bytes} of {self.limit_bytes} are free; end a session, or ask another peer"
                )
            for growth in growths:
                self._grow(growth.sequence, growth.capacity)
        for sequence, count in items:
            assert sequence.buffer is not None
            sequence.buffer.used = sequence.length + count

    def fork(self, sequence: PackedSequence) -> PackedSequence:
        """A sequence with the same tokens. It takes no memory until one of the two writes."""
        twin = PackedSequence()
        twin.length, twin.buffer = sequence.length, sequence.buffer
        if sequence.buffer is not None:
            sequence.buffer.refs += 1
        return twin

    def crop(self, sequence: PackedSequence, count: int) -> None:
        """Drop the last `count` tokens; memory is freed if less than half of the buffer is used.

        CacheFullError if the device has no memory for the smaller copy: the tokens are dropped, and the larger buffer stays.
        """
        sequence.length -= count
        if sequence.length == 0:
            self.close(sequence)
        elif sequence.buffer is not None and sequence.buffer.refs == 1:
            sequence.buffer.used = sequence.length
            if sequence.buffer.capacity > 2 * _with_slack(sequence.length):
                self._move(sequence, _with_slack(sequence.length))

    def close(self, sequence: PackedSequence) -> None:
        """Empty the sequence; its buffer is freed if no fork uses it."""
        self._drop(sequence)
        sequence.length = 0

    def _fitting(self, items: Sequence[tuple[PackedSequence, int]]) -> list[_Growth]:
        growths = self._growths(items, has_slack=True)
        if growths and self._bytes(growths) > self.limit_bytes - self.used_bytes:
            growths = self._growths(items, has_slack=False)
        return growths

    def _growths(self, items: Sequence[tuple[PackedSequence, int]], *, has_slack: bool) -> list[_Growth]:
        """The sequences that cannot write in place, in the order of `items` (an earlier one may take or leave a shared buffer)."""
        growths = []
        used: dict[int, int] = {}
        left: dict[int, int] = {}
        for sequence, count in items:
            buffer, need = sequence.buffer, sequence.length + count
            if buffer is not None:
                key = id(buffer)
                refs = left.get(key, buffer.refs)
                in_place = refs == 1 or used.get(key, buffer.used) == sequence.length
                if in_place and need <= buffer.capacity:
                    used[key] = need
                    continue
                left[key] = refs - 1
                freed = buffer.capacity if refs == 1 else 0
            else:
                freed = 0
            growths.append(_Growth(sequence, _with_slack(need) if has_slack else _rounded_up(need), freed))
        return growths

    def _bytes(self, growths: Sequence[_Growth]) -> int:
        return sum(growth.capacity - growth.freed_tokens for growth in growths) * self._token_bytes

    def _grow(self, sequence: PackedSequence, capacity: int) -> None:
        """Let the sequence have `capacity` tokens: in place if its tensors are long enough and not shared."""
        buffer = sequence.buffer
        if buffer is None or buffer.refs > 1 or capacity > buffer.extent:
            self._move(sequence, capacity)
            return
        self.used_bytes += (capacity - buffer.capacity) * self._token_bytes
        buffer.capacity = capacity

    def _move(self, sequence: PackedSequence, capacity: int) -> None:
        """Give the sequence its own buffer of `capacity` tokens. It is allocated before the old one is freed."""
        old, new, length = sequence.buffer, self._allocate(capacity), sequence.length
        if old is not None:
            for target, source in zip((*new.keys, *new.values), (*old.keys, *old.values), strict=True):
                target[:, :, :length] = source[:, :, :length]
        self._drop(sequence)
        new.used, sequence.buffer = length, new
        self.used_bytes += capacity * self._token_bytes

    def _allocate(self, capacity: int) -> Buffer:
        """A buffer for `capacity` tokens; on a CPU with spare length, if the process has the address space."""
        if all(shape.device.type == "cpu" for shape in self._shapes):
            with contextlib.suppress(OSError):
                return self._buffer(capacity, max(CPU_EXTENT_TOKENS, 2 * capacity), _mapped)
        try:
            return self._buffer(capacity, capacity, _allocated)
        except (RuntimeError, MemoryError) as error:  # the device has less memory than it promised
            raise CacheFullError(
                f"the device has no memory for {counted(capacity, 'token')} of a sequence; ask another peer"
            ) from error

    def _buffer(self, capacity: int, extent: int, tensor: Callable[[BlockShape, int, int], Tensor]) -> Buffer:
        buffer = Buffer()
        buffer.capacity, buffer.extent = capacity, extent
        buffer.keys = [tensor(shape, extent, shape.key_size) for shape in self._shapes]
        buffer.values = [tensor(shape, extent, shape.value_size) for shape in self._shapes]
        return buffer

    def _drop(self, sequence: PackedSequence) -> None:
        buffer, sequence.buffer = sequence.buffer, None
        if buffer is not None:
            buffer.refs -= 1
            if buffer.refs == 0:
                self.used_bytes -= buffer.capacity * self._token_bytes


def _allocated(shape: BlockShape, extent: int, size: int) -> Tensor:
    return torch.empty(1, shape.num_heads, extent, size, dtype=shape.dtype, device=shape.device)


def _mapped(shape: BlockShape, extent: int, size: int) -> Tensor:
    """A tensor in an own mapping, which takes memory by small pages as they are written, and is unmapped with it. May raise OSError."""
    num_bytes = shape.num_heads * extent * size * shape.dtype.itemsize
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=shape.dtype).view(1, shape.num_heads, extent, size)


def _rounded_up(need: int) -> int:
    return -(-need // GROW_TOKENS) * GROW_TOKENS


def _with_slack(need: int) -> int:
    return _rounded_up(max(need + GROW_TOKENS, need * 3 // 2))
