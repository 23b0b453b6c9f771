"""Mutations of valid bytes: by byte, by part, and by structure.

By structure: a frame's header or a msgpack map is taken apart and put together wrong.

Everything comes from the given generator, so a seed and a number name an input for ever.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import msgpack

MAX_BYTES = 64 << 10
"""Longest input: what must cost 20 ms at most."""

_PREFIX = struct.Struct(">2sBBI")
_NUMBERS = (0, 1, -1, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, -(2**63), 0.0, 1e308)
_SPECIAL: tuple[object, ...] = (
    None,
    True,
    False,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2J",
    "\U0001f300",
    b"",
    b"\xff" * 16,
)
_MARKERS = bytes((0x80, 0x90, 0xC1, 0xC4, 0xC6, 0xC9, 0xD4, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0x00, 0xFF, 0x0A, 0x20))


def mutated(rng: random.Random, sample: bytes, others: Sequence[bytes]) -> bytes:
    """One to four mutations of `sample`, at most MAX_BYTES; `others` are what may be spliced in."""
    data = sample
    if rng.random() < 0.5:
        data = _structured(rng, data)
    for _ in range(rng.choice((0, 1, 1, 2, 3)) if data != sample else rng.choice((1, 1, 2, 3))):
        data = rng.choice(_BY_BYTE)(rng, data, others)
    return data[:MAX_BYTES]


# --- by byte


def _flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _overwrite(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    new = bytes([rng.choice(_MARKERS)]) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 2, 4, 8)))
    return data[:at] + new + data[at + len(new) :]


def _cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 1_000_000))
    return data[:at] + data[at + size :]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice(_MARKERS)]) * rng.choice((1, 2, 16, 300)) + data[at:]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A stretch many times over; now and then as often as fits."""
    start = rng.randrange(len(data) + 1)
    stretch = data[start : start + rng.choice((1, 2, 8, 64))]
    most = MAX_BYTES // max(1, len(stretch))
    times = rng.choice((2, 3, 100)) if rng.random() < 0.98 else most
    return data[:start] + stretch * times + data[start:]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Four bytes become an interesting number: often a length."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + struct.pack(rng.choice((">I", "<I")), rng.choice((0, 1, 2**31, 2**32 - 1, len(data)))) + data[at + 4 :]


_BY_BYTE = (_flip, _overwrite, _cut, _insert, _repeat, _splice, _number)


# --- by structure


def _structured(rng: random.Random, data: bytes) -> bytes:
    """A frame with a changed header, or changed msgpack; other bytes come back as they are."""
    try:
        if data[:2] == b"MU" and data[2:3] == b"\1":
            (_, _, _, length) = _PREFIX.unpack_from(data)
            end = _PREFIX.size + length
            header = msgpack.packb(_changed(rng, msgpack.unpackb(data[_PREFIX.size : end])))
            rest = data[end + (-end % 16) :]
            start = _PREFIX.pack(b"MU", 1, 0, len(header)) + header
            return start + bytes(-len(start) % 16) + rest
        packed: bytes = msgpack.packb(_changed(rng, msgpack.unpackb(data)))
        return packed
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError):
        return data


def _changed(rng: random.Random, value: Any) -> Any:
    """The same value with one thing changed somewhere within."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        fate = rng.random()
        if fate < 0.08:
            return {other: inner for other, inner in value.items() if other != key}
        if fate < 0.16:
            return {**value, rng.choice(("zzz", "b", "t", 7, "")): _value(rng)}
        return {**value, key: _changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        fate = rng.random()
        if fate < 0.2:
            return value[:at] + value[at + 1 :]
        if fate < 0.4:
            return value[:at] + [value[at]] * rng.choice((2, 3, 65, 1_025)) + value[at:]
        return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, bytes | str) and rng.random() < 0.5:
        return value[: rng.randrange(len(value) + 1)] * rng.choice((0, 1, 2, 50))
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2))
    return _value(rng)


def _value(rng: random.Random) -> Any:
    fate = rng.random()
    if fate < 0.4:
        return rng.choice(_NUMBERS)
    if fate < 0.7:
        return rng.choice(_SPECIAL)
    if fate < 0.8:
        return [rng.choice(_NUMBERS)] * rng.choice((1, 4, 1_024, 20_000))
    if fate < 0.9:
        return [rng.choice(([], {}, "", b""))] * rng.choice((1, 4, 1_024, 50_000))
    nested: Any = rng.choice((0, {}))
    for _ in range(rng.choice((1, 5, 15, 400))):
        nested = [nested] if rng.random() < 0.7 else {"k": nested}
    return nested
