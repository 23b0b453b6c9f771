"""A frame: a msgpack header followed by raw buffers, which are never copied into msgpack.

    offset  bytes  what
    0       2      b"MU"
    2       1      version of the frame layout (1)
    3       1      flags, 0
    4       4      length of the header, big-endian
    8       n      header: a msgpack map with text keys; key "b" lists the buffers' lengths
            …      zeros up to a multiple of 16, then each buffer, likewise padded

Unknown header keys are ignored, so that newer peers may add some. Nothing is allocated for a length that the frame only claims.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from protocols.defaults import MAX_BUFFERS, MAX_FRAME_BYTES, MAX_HEADER_BYTES
from protocols.errors import FrameError

MAGIC = b"MU"
VERSION = 1
_PREFIX = struct.Struct(">2sBBI")
_ALIGN = 16

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: header fields as msgpack gives them (unchecked), and views into the received bytes."""

    header: dict[str, Any]
    buffers: tuple[memoryview, ...]


def _padding(length: int) -> int:
    return -length % _ALIGN


def encode(header: Mapping[str, object], buffers: Sequence[Buffer] = ()) -> bytes:
    """Join a header (msgpack values under text keys, not "b") and buffers. FrameError where a limit is passed."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    packed = msgpack.packb({**header, "b": [len(view) for view in views]} if views else dict(header))
    if len(views) > MAX_BUFFERS or len(packed) > MAX_HEADER_BYTES:
        raise FrameError(f"a frame holds at most {MAX_BUFFERS} buffers and {MAX_HEADER_BYTES} bytes of header, got {len(views)} and {len(packed)}")
    parts: list[Buffer] = [_PREFIX.pack(MAGIC, VERSION, 0, len(packed)), packed, bytes(_padding(_PREFIX.size + len(packed)))]
    for view in views:
        parts += [view, bytes(_padding(len(view)))]
    total = sum(len(part) for part in parts)
    if total > MAX_FRAME_BYTES:
        raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, got {total}: send it in smaller steps")
    return b"".join(parts)


def decode(data: bytes) -> Frame:
    """Split what a peer sent. FrameError names what is wrong; the buffers are views, so nothing is copied."""
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, got {len(data)}")
    if len(data) < _PREFIX.size:
        raise FrameError(f"a frame has at least {_PREFIX.size} bytes, got {len(data)}")
    magic, version, _flags, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"a frame starts with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise FrameError(f"frame version {version} is not known here, expected {VERSION}: upgrade the older of the two peers")
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(data):
        raise FrameError(f"a header of {length} bytes does not fit a frame of {len(data)} (limit {MAX_HEADER_BYTES})")
    view = memoryview(data)
    header = _unpack(view[_PREFIX.size : _PREFIX.size + length])
    return Frame(header, _split(view, _PREFIX.size + length, header.pop("b", [])))


def _unpack(data: memoryview) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise FrameError(f"the header is not msgpack: {error}") from None
    if not isinstance(header, dict) or not all(isinstance(key, str) for key in header):
        raise FrameError(f"the header must be a map with text keys, got {type(header).__name__}")
    return header


def _split(view: memoryview, end_of_header: int, lengths: object) -> tuple[memoryview, ...]:
    if not isinstance(lengths, list) or len(lengths) > MAX_BUFFERS:
        raise FrameError(f"the list of buffers must have at most {MAX_BUFFERS} lengths, got {str(lengths)[:60]}")
    at, buffers = end_of_header + _padding(end_of_header), []
    for length in lengths:
        if type(length) is not int or not 0 <= length <= len(view) - at:
            raise FrameError(f"a buffer of {str(length)[:40]} bytes does not fit the {max(0, len(view) - at)} that are left")
        buffers.append(view[at : at + length])
        at += length + _padding(length)
    if at > len(view) and buffers or at < len(view) and lengths:
        raise FrameError(f"the frame has {len(view)} bytes, its buffers end at {at}")
    return tuple(buffers)
