"""A bitmap: which of n things are there.

Bit n is in byte n // 8, the lowest bit first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from protocols.errors import BadRequestError


class Bitmap:
    """n bits, all 0 at first."""

    def __init__(self, num: int, data: bytes | None = None) -> None:
        """data: what `to_bytes` gave; BadRequestError where its length is another, or a bit beyond `num` is set."""
        size = -(-num // 8)
        if data is not None and (len(data) != size or (num % 8 and data[-1] >> num % 8)):
            raise BadRequestError(f"a bitmap of {num} bits has {size} bytes and no bit beyond them, got {len(data)} bytes")
        self.num = num
        self._bits = bytearray(size if data is None else data)
        self.count = self.mask.bit_count()

    @classmethod
    def of(cls, num: int, members: Iterable[int]) -> Self:
        made = cls(num)
        for member in members:
            made.set(member)
        return made

    def __contains__(self, index: int) -> bool:
        return bool(0 <= index < self.num and self._bits[index >> 3] >> (index & 7) & 1)

    def set(self, index: int) -> None:
        assert 0 <= index < self.num
        if index not in self:
            self._bits[index >> 3] |= 1 << (index & 7)
            self.count += 1

    @property
    def mask(self) -> int:
        """The same bits as an integer (`protocols/masks.py`)."""
        return int.from_bytes(self._bits, "little")

    @property
    def is_full(self) -> bool:
        return self.count == self.num

    def byte(self, index: int) -> tuple[int, bytes]:
        """(its place, the byte) that holds a bit: what a file needs to be told after `set`."""
        return index >> 3, bytes(self._bits[index >> 3 : (index >> 3) + 1])

    def to_bytes(self) -> bytes:
        return bytes(self._bits)
