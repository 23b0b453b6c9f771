"""A frame: a msgpack header followed by raw buffers.

Buffers are never copied into msgpack.

    offset  bytes  what
    0       2      b"MU"
    2       1      version of the frame layout (1)
    3       1      flags, 0 (none is known yet: anything else is refused)
    4       4      length of the header, big-endian
    8       n      header: a msgpack map with text keys; "t", its kind, comes first; "b" lists the buffers' lengths
            …      zeros up to a multiple of 16, then each buffer, likewise padded

Unknown header keys are ignored, so that newer peers may add some. Every other byte is accounted for: a frame that is cut, longer
than its parts, or padded with anything but zeros is refused. Nothing is allocated for a length that the frame only claims, and
nothing is unpacked or kept beyond what the frame's kind may have (`bounds.py`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from protocols import bounds, fields, msgpack_bounds
from protocols.bounds import Bounds
from protocols.defaults import MAX_BUFFERS, MAX_FRAME_BYTES, MAX_HEADER_BYTES
from protocols.errors import BadRequestError, FrameError, shown
from protocols.words import counted

MAGIC = b"MU"
VERSION = 1
_PREFIX = struct.Struct(">2sBBI")
_ALIGN = 16

_KIND = re.compile(rb"(?:[\x80-\x8f]|\xde..)\xa1t([\xa0-\xbf])", re.DOTALL)
"""The beginning of a header whose first key is "t" and whose first value is a short text."""

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: header fields as msgpack gives them (unchecked), and views into the received bytes."""

    header: dict[str, Any]
    buffers: tuple[memoryview, ...]


def _padding(length: int) -> int:
    return -length % _ALIGN


def encode(header: Mapping[str, object], buffers: Sequence[Buffer] = ()) -> bytes:
    """Join a header (msgpack values under text keys, not "b") and buffers. FrameError if a limit is passed."""
    assert "b" not in header
    views = [memoryview(buffer).cast("B") if memoryview(buffer).nbytes else memoryview(b"") for buffer in buffers]
    packed = msgpack.packb({**header, "b": [len(view) for view in views]} if views else dict(header))
    if len(views) > MAX_BUFFERS or len(packed) > MAX_HEADER_BYTES:
        raise FrameError(
            f"a frame holds at most {MAX_BUFFERS} buffers and a header of {MAX_HEADER_BYTES}, got {len(views)} and {len(packed)}"
        )
    parts: list[Buffer] = [_PREFIX.pack(MAGIC, VERSION, 0, len(packed)), packed, bytes(_padding(_PREFIX.size + len(packed)))]
    for view in views:
        parts += [view, bytes(_padding(len(view)))]
    total = sum(map(len, parts))
    if total > MAX_FRAME_BYTES:
        raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, got {total}: send it in smaller steps")
    return b"".join(parts)


def decode(data: bytes) -> Frame:
    """Split what a peer sent. FrameError names what is wrong; the buffers are views, so nothing is copied."""
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, got {len(data)}")
    if len(data) < _PREFIX.size:
        raise FrameError(f"a frame has at least {_PREFIX.size} bytes, got {len(data)}")
    magic, version, flags, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"a frame starts with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise FrameError(f"frame version {version} is not known here, expected {VERSION}: upgrade the older of the two peers")
    if flags:
        raise FrameError(f"frame flags {flags:#04x} are not known here, expected 0: upgrade this peer")
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(data):
        raise FrameError(f"a header of {length} bytes does not fit a frame of {len(data)} (limit {MAX_HEADER_BYTES})")
    view = memoryview(data)
    packed = view[_PREFIX.size : _PREFIX.size + length]
    limits = _limits(_first_kind(packed))
    header = unpack_map(packed, limits)
    if limits is not _limits(header.get("t")):
        raise FrameError(f"a header begins with the kind of its message, under the key 't', got {shown(header.get('t'))} later")
    return Frame(header, _split(view, _PREFIX.size + length, header.pop("b", []), limits.buffers))


def _limits(kind: object) -> Bounds:
    return bounds.BY_KIND.get(kind, bounds.OTHERS) if isinstance(kind, str) else bounds.OTHERS


def _first_kind(packed: memoryview) -> str | None:
    """The kind that a packed header begins with, read before anything is unpacked; None if it begins with anything else."""
    match = _KIND.match(packed)
    if match is None:
        return None
    start = match.end()
    return bytes(packed[start : start + (match[1][0] & 0x1F)]).decode("ascii", "replace")


def decode_kind(data: bytes, kind: str) -> Frame:
    """Decode a frame whose message must be of one kind (header key "t"); BadRequestError names another."""
    received = decode(data)
    if received.header.get("t") != kind:
        raise BadRequestError(f"expected a message of kind {kind!r}, got {shown(received.header.get('t'))}")
    return received


def parse_one_of(data: bytes, kinds: Mapping[str, Callable[[Frame], T]]) -> T:
    """Decode a frame and let the reader of its kind (header key "t") parse it; BadRequestError names a kind that has none."""
    received = decode(data)
    name = received.header.get("t")
    reader = kinds.get(name) if isinstance(name, str) else None
    if reader is None:
        raise BadRequestError(f"message kind {shown(name)} is unknown; known: {', '.join(kinds)}")
    return reader(received)


def buffers_of(received: Frame, number: int) -> tuple[memoryview, ...]:
    """The buffers of a frame that must have so many; FrameError otherwise."""
    if len(received.buffers) != number:
        raise FrameError(f"expected {counted(number, 'buffer')}, got {len(received.buffers)}")
    return received.buffers


def unpack_map(data: bytes | memoryview, limits: Bounds) -> dict[str, Any]:
    """A msgpack map with text keys within `limits`; FrameError otherwise. `fields.py` reads the unchecked values."""
    if len(data) > limits.header_bytes:
        raise FrameError(f"at most {limits.header_bytes} bytes of msgpack are taken for this kind, got {len(data)}")
    msgpack_bounds.check(bytes(data), limits.items, limits.lists)
    try:
        value = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"not msgpack: {str(error)[:100] or type(error).__name__}") from None
    if not isinstance(value, dict) or not fields.TEXT.issuperset(map(type, value)):
        raise FrameError(f"expected a map with text keys, got {shown(value)}")
    return value


def _split(view: memoryview, end_of_header: int, lengths: object, most: int) -> tuple[memoryview, ...]:
    if not isinstance(lengths, list) or len(lengths) > most:
        raise FrameError(f"a frame of this kind lists the lengths of {counted(most, 'buffer')} at most, got {shown(lengths)}")
    at, buffers = _skip_padding(view, end_of_header), []
    for length in lengths:
        if type(length) is not int or not 0 <= length <= len(view) - at:
            raise FrameError(f"a buffer of {shown(length)} bytes does not fit the {len(view) - at} that are left")
        buffers.append(view[at : at + length])
        at = _skip_padding(view, at + length)
    if at != len(view):
        raise FrameError(f"the frame has {len(view)} bytes, but its parts end at {at}")
    return tuple(buffers)


def _skip_padding(view: memoryview, end: int) -> int:
    start = end + _padding(end)
    if start > len(view) or any(view[end:start]):
        raise FrameError(f"byte {end} of a frame of {len(view)} must be followed by zeros up to byte {start}")
    return start
