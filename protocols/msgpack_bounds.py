"""Bounds on msgpack before it is unpacked: depth, items, lists.

The unpacker makes each list as it meets the promise, so 400 nested promises in 2 KB took 32 MB (msgpack 1.2; older versions 16 times
that), a megabyte of empty maps 77, and 131 KB of empty lists 96 ms. Here a walk over the first byte of each item adds the promises
up, and ends at the first one too many: 10 µs for a step, 1 ms for the largest message that any kind may be (`bounds.py`).
Layout: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Final

from protocols.errors import FrameError

MAX_DEPTH: Final = 16
"""Lists and maps within each other; our deepest message (a hop's addresses in a grant) has 5."""

_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Marker of a long list or map -> bytes of its count, items for each count."""
_MEASURED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Marker of long bytes or text -> bytes of the length that follows."""
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""Marker -> bytes of the value that follows. Extension types are not ours, so they are missing here."""


def _size(marker: int) -> int:
    """Bytes of a scalar whose first byte says them all, itself included; 0 for anything else."""
    if marker <= 0x7F or marker >= 0xE0:
        return 1
    if 0xA0 <= marker <= 0xBF:
        return 1 + (marker & 0x1F)
    return 1 + _FIXED[marker] if marker in _FIXED else 0


_SIZES = tuple(map(_size, range(256)))


def check(data: bytes, max_items: int, max_lists: int) -> None:
    """FrameError unless `data` is exactly one item, is not too deep, and neither has nor promises more than so many items and lists.

    An item takes at least a byte, so no more are believed than there are bytes either.
    """
    at, left, lists, parents = 0, 1, 0, [0] * 0
    promised, most = 1, min(len(data), max_items)
    while True:
        while not left:
            if not parents:
                return _check_end(at, len(data))
            left = parents.pop()
        left -= 1
        try:
            marker = data[at]
        except IndexError:
            raise FrameError(f"msgpack of {len(data)} bytes ends in the middle of an item") from None
        size = _SIZES[marker]
        if size:
            at += size
        elif marker in _MEASURED:
            width = _MEASURED[marker]
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            at, items = _opened(data, at, marker)
            promised, lists = promised + items, lists + 1
            parents.append(left)
            left = items
            if promised > most or lists > max_lists or len(parents) > MAX_DEPTH + 1:
                raise FrameError(
                    f"msgpack of {len(data)} bytes promises {promised} items in {lists} lists, {len(parents)} deep "
                    f"(limits of this kind: {max_items} items, {max_lists} lists, {MAX_DEPTH} deep)"
                )


def _opened(data: bytes, at: int, marker: int) -> tuple[int, int]:
    """Where the items of a list or map begin, and how many there are."""
    if 0x80 <= marker <= 0x8F:
        return at + 1, 2 * (marker & 0x0F)
    if 0x90 <= marker <= 0x9F:
        return at + 1, marker & 0x0F
    if marker not in _COUNTED:
        raise FrameError(f"msgpack with marker {marker:#04x} is not taken here, expected maps, lists, text, bytes and numbers")
    width, each = _COUNTED[marker]
    return at + 1 + width, each * int.from_bytes(data[at + 1 : at + 1 + width], "big")


def _check_end(at: int, end: int) -> None:
    if at < end:
        raise FrameError(f"msgpack has {end} bytes, its one item ends at {at}")
    if at > end:
        raise FrameError(f"msgpack of {end} bytes ends in the middle of an item")
