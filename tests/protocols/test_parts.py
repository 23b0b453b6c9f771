"""Frames that were split come back whole; other bytes are refused."""

from __future__ import annotations

import random

import pytest

from protocols import frame, parts
from protocols.defaults import MAX_FRAME_BYTES, MAX_PART_BYTES
from protocols.errors import FrameError


def joined(messages: list[bytes]) -> bytes | None:
    if not parts.is_part(messages[0]):
        return messages[0] if len(messages) == 1 else None
    whole = parts.Joined()
    found = [whole.take(message) for message in messages]
    assert all(one is None for one in found[:-1])
    return found[-1]


@pytest.mark.parametrize("size", [1, MAX_PART_BYTES, MAX_PART_BYTES + 1, 2 * MAX_PART_BYTES, 3 * MAX_PART_BYTES - 1])
def test_a_frame_comes_back_as_it_was_and_small_ones_travel_as_they_are(size: int) -> None:
    data = random.Random(size).randbytes(size)
    messages = list(parts.split(data))
    assert len(messages) == -(-size // MAX_PART_BYTES)
    assert all(len(message) <= MAX_PART_BYTES + parts.PREFIX_BYTES for message in messages)
    assert joined(messages) == data


def test_no_frame_is_taken_for_a_part() -> None:
    assert not parts.is_part(frame.encode({"t": "hello"}))


def test_frames_without_end_and_interrupted_ones_are_refused() -> None:
    whole, part = parts.Joined(), next(parts.split(bytes(MAX_PART_BYTES + 1)))
    for _ in range(MAX_FRAME_BYTES // MAX_PART_BYTES):
        assert whole.take(part) is None
    with pytest.raises(FrameError, match="parts have"):
        whole.take(part)
    for message in (frame.encode({"t": "hello"}), b"", b"MUP\0", b"MUP"):
        with pytest.raises(FrameError):
            parts.Joined().take(message)
