"""Sends a frame that is too large for one message.

It travels in parts, on streams to a server.

    offset  bytes  what
    0       3      b"MUP": no frame begins so
    3       1      1: more parts follow; 0: the last one
    4       …      consecutive bytes of the frame

A server then needs to hold no more than a part of what has not arrived.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocols.defaults import MAX_FRAME_BYTES, MAX_PART_BYTES
from protocols.errors import FrameError

_MAGIC = b"MUP"
PREFIX_BYTES = len(_MAGIC) + 1
_LAST, _MORE = b"\0", b"\1"


def split(frame: bytes) -> Iterator[bytes]:
    """The messages that carry `frame`: itself if it is small enough."""
    if len(frame) <= MAX_PART_BYTES:
        yield frame
        return
    view = memoryview(frame)
    for start in range(0, len(frame), MAX_PART_BYTES):
        stop = start + MAX_PART_BYTES
        yield b"".join((_MAGIC, _MORE if stop < len(frame) else _LAST, view[start:stop]))


def is_part(message: bytes) -> bool:
    return message.startswith(_MAGIC)


class Joined:
    """A frame of which some parts have arrived."""

    def __init__(self) -> None:
        self._parts: list[memoryview] = []
        self._num_bytes = 0

    def take(self, message: bytes) -> bytes | None:
        """The frame if `message` is its last part. FrameError if it is no part, or the frame would be too large."""
        if not is_part(message) or len(message) <= PREFIX_BYTES:
            raise FrameError(f"a frame in parts goes on with a part, got a message of {len(message)} bytes that is none")
        is_last = message[PREFIX_BYTES - 1 : PREFIX_BYTES] == _LAST
        if not is_last and len(message) < PREFIX_BYTES + MAX_PART_BYTES:  # a frame in a million parts takes 200 MB beside its own
            raise FrameError(f"a part that another follows has {MAX_PART_BYTES} bytes, got {len(message) - PREFIX_BYTES}")
        self._num_bytes += len(message) - PREFIX_BYTES
        if self._num_bytes > MAX_FRAME_BYTES:
            raise FrameError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, its parts have {self._num_bytes} already")
        self._parts.append(memoryview(message)[PREFIX_BYTES:])
        return b"".join(self._parts) if is_last else None
