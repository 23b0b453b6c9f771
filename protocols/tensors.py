"""A tensor on the wire: a described header and raw values.

The header has dtype, shape, codec and checksum. No torch in this file.

`compression.py` turns torch tensors into these and back; a peer that only passes tensors on needs no torch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols import fields
from protocols.errors import TensorFormatError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
"""Dtypes that may cross the wire, with the bytes of one value, little-endian."""

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
"""Number formats in which blocks compute; the first wins a tie."""

CODECS = ("none", "float16", "bfloat16", "int8")
"""How values are packed: float16 and bfloat16 store each value in that dtype, int8 stores vectors of codes after their scales."""

BLOCK = 128
"""Consecutive values of a vector (the last dimension) that share an int8 scale; its last block may be shorter."""

LARGEST_SCALE = 3e38 / 128
"""Of int8: code times scale stays finite."""

_EXPONENTS = {
    "float32": ("f", bytes([0x7F, 0xFF]), 0),
    "float16": ("H", bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), 0x7C00),
    "bfloat16": ("H", bytes([0x7F, 0xFF]), 0x7F80),
}
"""Of each float: how to read one, what its highest byte may be where it is NaN or infinite, and the mask of its exponent."""

MAX_DIMS = 4
MAX_DIM = 1 << 24


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as bytes: `shape` of `dtype` values, stored by `codec`; `data` holds exactly what these three say."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: memoryview | bytes
    num_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES or self.codec not in CODECS:
            known = f"{', '.join(ITEM_BYTES)}; {', '.join(CODECS)}"
            raise TensorFormatError(f"dtype {self.dtype[:20]!r} with codec {self.codec[:20]!r} is unknown; known: {known}")
        if len(self.shape) > MAX_DIMS or (self.shape and not 0 <= min(self.shape) <= max(self.shape) <= MAX_DIM):
            raise TensorFormatError(
                f"a tensor has at most {MAX_DIMS} dimensions of at most {MAX_DIM}, got {list(self.shape)[:8]}"
            )
        if self.codec != "none" and not self.dtype.startswith(("float", "bfloat")):
            raise TensorFormatError(f"codec {self.codec} packs floats, not {self.dtype}")
        if self.codec == "int8" and len(self.shape) < 2:
            raise TensorFormatError(f"codec int8 packs vectors: tensors of 2 dimensions or more, got {list(self.shape)}")
        object.__setattr__(self, "num_bytes", self._bytes_of(self.shape))  # it is asked for often
        if memoryview(self.data).nbytes != self.num_bytes:
            got = memoryview(self.data).nbytes
            raise TensorFormatError(
                f"{self.dtype} {list(self.shape)} by codec {self.codec} takes {self.num_bytes} bytes, got {got}"
            )

    @property
    def token_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return self._bytes_of(self.shape[1:])

    def _bytes_of(self, shape: tuple[int, ...]) -> int:
        if self.codec == "int8":
            return math.prod(shape[:-1]) * (num_scales(shape[-1]) * 4 + shape[-1])
        return math.prod(shape) * ITEM_BYTES[self.dtype if self.codec == "none" else self.codec]

    def header(self) -> dict[str, object]:
        """What goes into a frame's header; the data travel as a buffer."""
        return {"d": self.dtype, "s": list(self.shape), "c": self.codec, "k": zlib.crc32(self.data)}


def num_scales(width: int) -> int:
    """Blocks of an int8 vector of `width` values: it begins with so many float32 scales, and one code a value follows."""
    return -(-width // BLOCK)


def cut(wire: WireTensor, start: int, stop: int) -> WireTensor:
    """Entries [start, stop) along the first axis, 0 <= start <= stop <= its length: a view of the same bytes."""
    assert 0 <= start <= stop <= wire.shape[0], f"cut {start}:{stop} of {list(wire.shape)}"
    if stop - start == wire.shape[0]:
        return wire
    size = wire.token_bytes
    data = memoryview(wire.data).cast("B")[start * size : stop * size] if start < stop and size else b""
    return WireTensor(wire.dtype, (stop - start, *wire.shape[1:]), wire.codec, data)


def join(wires: Sequence[WireTensor]) -> WireTensor:
    """At least one tensor, all of one kind, one after the other along the first axis. A single one is handed on; else bytes are copied.

    TensorFormatError if dtype, codec or width differ: they come from a peer.
    """
    first, width = wires[0], wires[0].shape[1:]
    if any((wire.dtype, wire.codec, wire.shape[1:]) != (first.dtype, first.codec, width) for wire in wires):
        raise TensorFormatError(f"cannot join {first.dtype} [tokens, *{list(width)}] with tensors of another kind")
    if len(wires) == 1:
        return first
    count = sum(wire.shape[0] for wire in wires)
    return WireTensor(first.dtype, (count, *width), first.codec, b"".join(wire.data for wire in wires))


def is_finite(wire: WireTensor) -> bool:
    """Is none of the values NaN or infinite? One pass over each value's highest byte; the values themselves are read only where that
    byte leaves a doubt (from 1.7e38 on). Integers are finite."""
    stored = wire.dtype if wire.codec == "none" else wire.codec
    if stored == "int8" and wire.num_bytes:
        return _has_finite_scales(wire)
    if stored not in _EXPONENTS or not wire.num_bytes:
        return True
    letter, doubtful, mask = _EXPONENTS[stored]
    data, size = bytes(wire.data), ITEM_BYTES[stored]
    highest = data[size - 1 :: size]
    if len(highest.translate(None, doubtful)) == len(highest):
        return True
    values = memoryview(data).cast(letter)  # type: ignore[call-overload]  # one of two letters
    if mask:
        return not any(value & mask == mask for value in values)
    return math.isfinite(sum(values))  # of doubles: 2**63 float32 values would be needed to pass their range


def _has_finite_scales(wire: WireTensor) -> bool:
    data, width = memoryview(wire.data).cast("B"), wire.shape[-1]
    scale_bytes = 4 * num_scales(width)
    scales = b"".join(data[at : at + scale_bytes] for at in range(0, len(data), scale_bytes + width))
    return all(-LARGEST_SCALE <= scale <= LARGEST_SCALE for scale in memoryview(scales).cast("f"))


def parse(header: object, buffers: Sequence[memoryview], index: int = 0) -> WireTensor:
    """Rebuild a tensor from its header and the frame's buffers; TensorFormatError if shape, size or checksum disagree."""
    table: dict[str, Any] = fields.table(header, "tensor")
    shape = fields.integers(table, "s", MAX_DIMS, 0, MAX_DIM)
    if index >= len(buffers):
        raise TensorFormatError(f"the frame has {len(buffers)} buffers, the tensor is number {index + 1}")
    tensor = WireTensor(fields.text(table, "d", 16), shape, fields.text(table, "c", 16), buffers[index])
    if zlib.crc32(tensor.data) != fields.integer(table, "k", 0, 0xFFFFFFFF):
        raise TensorFormatError(f"the checksum of a {tensor.dtype} {list(shape)} tensor is wrong: it was damaged on its way")
    return tensor
