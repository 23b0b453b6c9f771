"""Bounds on msgpack before it is unpacked: how deep, how many items, and never more promised than there are bytes to hold them.

The unpacker makes each list as it meets the promise, so 400 nested promises in 2 KB took 32 MB (msgpack 1.2; older versions 16 times
that), and a megabyte of empty maps 77. Here a walk over the first byte of each item adds the promises up: 10 µs for a step.
Layout: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Final

from protocols.errors import FrameError

MAX_DEPTH: Final = 16
"""Lists and maps within each other; our deepest message (a hop's addresses in a grant) has 5."""

MAX_ITEMS: Final = 1 << 17
"""Items of one header: twice the positions of the largest step."""

_LISTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Marker -> bytes of the count, items for each count."""
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Marker -> bytes of the length that follows."""
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""Marker -> bytes of the value that follows. Extension types are not ours, so they are missing here."""


def _step(marker: int) -> tuple[int, int, int]:
    """(what to skip after the marker, bytes of a number that follows, items of each count; -1 = the number is a length)."""
    if marker <= 0x7F or marker >= 0xE0:
        return 0, 0, 0
    if marker <= 0x8F:
        return 0, 0, 2 * (marker & 0x0F)
    if marker <= 0x9F:
        return 0, 0, marker & 0x0F
    if marker <= 0xBF:
        return marker & 0x1F, 0, 0
    if marker in _FIXED:
        return _FIXED[marker], 0, 0
    if marker in _BYTES:
        return 0, _BYTES[marker], -1
    if marker in _LISTS:
        return 0, *_LISTS[marker]
    return -1, 0, 0


_STEPS = tuple(_step(marker) for marker in range(256))


def check(data: bytes) -> None:
    """FrameError where `data` is not exactly one item, is nested too deep, or promises more items than it has bytes."""
    at, end, promised, open_items = 0, len(data), 1, [1]
    while open_items:
        if not open_items[-1]:
            open_items.pop()
            continue
        open_items[-1] -= 1
        if at >= end:
            raise FrameError(f"msgpack of {end} bytes ends in the middle of an item")
        skip, width, items = _STEPS[data[at]]
        if skip < 0:
            raise FrameError(
                f"msgpack with marker {data[at]:#04x} is not taken here, expected maps, lists, text, bytes and numbers"
            )
        at += 1 + skip
        if width:
            count = int.from_bytes(data[at : at + width], "big")
            at += width
            if items < 0:
                at, items = at + count, 0
            items *= count
        if items:
            promised += items
            open_items.append(items)
            if promised > min(end, MAX_ITEMS) or len(open_items) > MAX_DEPTH + 1:
                limits = f"limits {MAX_ITEMS} items, {MAX_DEPTH} deep"
                raise FrameError(f"msgpack of {end} bytes promises {promised} items, {len(open_items) - 1} deep ({limits})")
    if at != end:
        raise FrameError(f"msgpack has {end} bytes, its one item ends at {at}")
