"""Texts as tokens, and how they cross a sandbox's pipe.

A list of ids as JSON costs half as much as encoding the text. So numbers are packed: little-endian, 4 bytes each, in base64.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TYPE = next(code for code in "IL" if array(code).itemsize == 4)
"""The letter of `array` for 4 bytes without a sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One text as tokens."""

    ids: Sequence[int]

    spans: Sequence[tuple[int, int]]
    """[start, stop) of each token: letters of the text that it stands for, spaces included. Empty if nothing asked for them."""


def pack_all(found: Sequence[Encoded]) -> dict[str, Any]:
    """For JSON."""
    return {
        "counts": [len(one.ids) for one in found],
        "ids": pack(number for one in found for number in one.ids),
        "spans": pack(edge for one in found for span in one.spans for edge in span),
    }


def unpack_all(packed: Mapping[str, Any]) -> list[Encoded]:
    """What `pack_all` packed."""
    ids, edges = unpack(packed["ids"]), unpack(packed["spans"])
    spans, found, start = list(zip(edges[0::2], edges[1::2], strict=True)), [], 0
    for count in packed["counts"]:
        found.append(Encoded(ids=ids[start : start + count], spans=spans[start : start + count]))
        start += count
    return found


def pack(numbers: Iterable[int]) -> str:
    """numbers: 0 to 2**32 - 1."""
    return base64.b64encode(_swapped(array(TYPE, numbers)).tobytes()).decode()


def unpack(text: str) -> array[int]:
    """ValueError if this is not what `pack` makes."""
    numbers = array(TYPE)
    numbers.frombytes(base64.b64decode(text, validate=True))
    return _swapped(numbers)


def _swapped(numbers: array[int]) -> array[int]:
    """Little-endian from this machine's order, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
