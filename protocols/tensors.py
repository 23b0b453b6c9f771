"""A tensor on the wire: dtype, shape, codec and checksum in the header, values in a raw buffer. No torch in this file.

`compression.py` turns torch tensors into these and back; a peer that only passes tensors on needs no torch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocols import fields
from protocols.errors import TensorFormatError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
"""Dtypes that may cross the wire, with the bytes of one value, little-endian."""

CODECS = ("none", "float16", "bfloat16")
"""How values are packed; a codec that is a dtype stores each value in that dtype."""

MAX_DIMS = 4
MAX_DIM = 1 << 24


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as bytes: `shape` of `dtype` values, stored by `codec`; `data` holds exactly what these three say."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: memoryview | bytes

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES or self.codec not in CODECS:
            known = f"{', '.join(ITEM_BYTES)}; {', '.join(CODECS)}"
            raise TensorFormatError(f"dtype {self.dtype[:20]!r} with codec {self.codec[:20]!r} is unknown; known: {known}")
        if len(self.shape) > MAX_DIMS or not all(0 <= dim <= MAX_DIM for dim in self.shape):
            raise TensorFormatError(
                f"a tensor has at most {MAX_DIMS} dimensions of at most {MAX_DIM}, got {list(self.shape)[:8]}"
            )
        if self.codec != "none" and not self.dtype.startswith(("float", "bfloat")):
            raise TensorFormatError(f"codec {self.codec} packs floats, not {self.dtype}")
        if memoryview(self.data).nbytes != self.num_bytes:
            got = memoryview(self.data).nbytes
            raise TensorFormatError(
                f"{self.dtype} {list(self.shape)} by codec {self.codec} takes {self.num_bytes} bytes, got {got}"
            )

    @property
    def num_bytes(self) -> int:
        stored = self.dtype if self.codec == "none" else self.codec
        return math.prod(self.shape) * ITEM_BYTES[stored]

    def header(self) -> dict[str, object]:
        """What goes into a frame's header; the data travel as a buffer."""
        return {"d": self.dtype, "s": list(self.shape), "c": self.codec, "k": zlib.crc32(self.data)}


def parse(header: object, buffers: Sequence[memoryview], index: int = 0) -> WireTensor:
    """Rebuild a tensor from its header and the frame's buffers; TensorFormatError where shape, size or checksum disagree."""
    table: dict[str, Any] = fields.table(header, "tensor")
    shape = fields.integers(table, "s", MAX_DIMS, 0, MAX_DIM)
    if index >= len(buffers):
        raise TensorFormatError(f"the frame has {len(buffers)} buffers, the tensor is number {index + 1}")
    tensor = WireTensor(fields.text(table, "d", 16), shape, fields.text(table, "c", 16), buffers[index])
    if zlib.crc32(tensor.data) != fields.integer(table, "k", 0, 0xFFFFFFFF):
        raise TensorFormatError(f"the checksum of a {tensor.dtype} {list(shape)} tensor is wrong: it was damaged on its way")
    return tensor
