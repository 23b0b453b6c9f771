"""Frames: exact bytes, exact limits, typed refusals."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import frame, inference
from protocols.bounds import Bounds
from protocols.defaults import MAX_BUFFERS, MAX_FRAME_BYTES, MAX_HEADER_BYTES
from protocols.errors import BadRequestError, FrameError, SwarmError, shown

SAMPLE = frame.encode({"t": "x", "n": 1}, [b"abc", b"", b"0123456789abcdef"])


def framed(
    header: bytes, rest: bytes = b"", *, magic: bytes = b"MU", version: int = 1, flags: int = 0, length: int | None = None
) -> bytes:
    """A frame by hand, so that any part of it can be wrong."""
    prefix = struct.pack(">2sBBI", magic, version, flags, len(header) if length is None else length)
    return prefix + header + bytes(-len(prefix + header) % 16) + rest


def peak_bytes(action: Callable[[], Any]) -> int:
    """What `action`, which must be refused, allocated at its worst moment."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_frame_is_these_bytes() -> None:
    expected = (
        "4d55" + "01" + "00" + "0000000e"  # magic, version, flags, length of the header
        "83" + "a174" + "a178" + "a16e" + "01" + "a162" + "93" + "03" + "00" + "10"  # {"t": "x", "n": 1, "b": [3, 0, 16]}
    )
    whole = bytes.fromhex(expected) + bytes(10) + b"abc" + bytes(13) + b"0123456789abcdef"
    assert frame.encode({"t": "x", "n": 1}, [b"abc", b"", b"0123456789abcdef"]) == whole


def test_buffers_are_views_and_aligned() -> None:
    decoded = frame.decode(SAMPLE)
    assert decoded.header == {"t": "x", "n": 1}
    assert [bytes(buffer) for buffer in decoded.buffers] == [b"abc", b"", b"0123456789abcdef"]
    assert all(buffer.obj is SAMPLE for buffer in decoded.buffers)


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda key: key != "b"), st.none() | st.integers(0, 2**63) | st.binary(max_size=40), max_size=8
    ),
    st.lists(st.binary(max_size=70), max_size=6),
)
def test_what_is_encoded_is_decoded(header: dict[str, object], buffers: list[bytes]) -> None:
    decoded = frame.decode(frame.encode(header, buffers))
    assert decoded.header == header
    assert [bytes(buffer) for buffer in decoded.buffers] == buffers


def test_a_frame_cut_anywhere_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(FrameError):
            frame.decode(SAMPLE[:length])


def test_a_frame_without_buffers_cut_anywhere_is_refused() -> None:
    whole = frame.encode({"t": "close"})
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            frame.decode(whole[:length])


@pytest.mark.parametrize("whole", [SAMPLE, frame.encode({"t": "close"})], ids=["with buffers", "without"])
@pytest.mark.parametrize("extra", [1, 15, 16, 1_000])
def test_bytes_after_the_end_are_refused(whole: bytes, extra: int) -> None:
    with pytest.raises(FrameError):
        frame.decode(whole + bytes(extra))


def test_padding_hides_nothing() -> None:
    at = SAMPLE.index(b"abc") + 3
    with pytest.raises(FrameError, match="zeros"):
        frame.decode(SAMPLE[:at] + b"!" + SAMPLE[at + 1 :])


def lengths(*values: object) -> bytes:
    return framed(msgpack.packb({"b": list(values)}), bytes(64))


WRONG = {
    "empty": b"",
    "wrong magic": framed(b"\x80", magic=b"PK"),
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "version 0": framed(b"\x80", version=0),
    "version of the future": framed(b"\x80", version=2),
    "unknown flags": framed(b"\x80", flags=1),
    "header longer than the frame": framed(b"\x80", length=9),
    "header beyond the limit": framed(b"\x80", length=MAX_HEADER_BYTES + 1),
    "header of 4 GiB": framed(b"\x80", length=2**32 - 1),
    "no header": framed(b""),
    "header not msgpack": framed(b"\xc1"),
    "header cut": framed(b"\x82\xa1t"),
    "header with bytes after it": framed(b"\x80\x80"),
    "header a list": framed(b"\x90"),
    "header a number": framed(b"\x07"),
    "header nil": framed(b"\xc0"),
    "number as key": framed(b"\x81\x01\x01"),
    "bytes as key": framed(b"\x81\xc4\x01t\x01"),
    "list as key": framed(b"\x81\x90\x01"),
    "map as key": framed(b"\x81\x80\x01"),
    "text that is not UTF-8": framed(b"\x81\xa1t\xa1\xff"),
    "extension type": framed(b"\x81\xa1t\xd4\x05\x00"),
    "timestamp": framed(b"\x81\xa1t\xd6\xff\x00\x00\x00\x00"),
    "map of 2^32 - 1": framed(b"\xdf\xff\xff\xff\xff"),
    "list of 2^32 - 1": framed(b"\x81\xa1t\xdd\xff\xff\xff\xff"),
    "text of 2^32 - 1": framed(b"\x81\xa1t\xdb\xff\xff\xff\xff"),
    "bytes of 2^32 - 1": framed(b"\x81\xa1t\xc6\xff\xff\xff\xff"),
    "a million items": framed(b"\x81\xa1t\xdd\x00\x0f\x00\x00" + b"\x80" * (15 << 16)),
    "nested 17 deep": framed(b"\x81\xa1t" + b"\x91" * 16 + b"\xc0"),
    "nested 5,000 deep": framed(b"\x81\xa1t" + b"\x91" * 5_000 + b"\x90"),
    "lengths not a list": framed(msgpack.packb({"b": 16}), bytes(16)),
    "lengths a map": framed(msgpack.packb({"b": {"0": 16}}), bytes(16)),
    "lengths nil": framed(msgpack.packb({"b": None})),
    "length negative": lengths(-16, 80),
    "length too long": lengths(65),
    "length of 2^60": lengths(2**60),
    "length of 2^64 - 1": lengths(2**64 - 1),
    "length a fraction": lengths(64.0),
    "length true": lengths(True),
    "length a text": lengths("64"),
    "lengths too short": lengths(16),
    "one buffer twice": lengths(64, 64),
    "lengths deep": lengths([[[[[[[[]]]]]]]]),
    "too many buffers": framed(msgpack.packb({"b": [0] * (MAX_BUFFERS + 1)})),
    "a buffer that this kind has no use for": framed(msgpack.packb({"t": "close", "b": [16]}), bytes(16)),
    "a second tensor of a step": framed(msgpack.packb({"t": "step", "b": [16, 16, 16]}), bytes(48)),
    "a header that ends with its kind": framed(msgpack.packb({"x": 1, "t": "reroute"})),
    "a header of two kinds": framed(b"\x82\xa1t\xa7reroute\xa1t\xa4step"),
    "a long header of an unknown kind": framed(msgpack.packb({"t": "x", "y": bytes(2_000)})),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_frame_is_refused(kind: str) -> None:
    with pytest.raises(FrameError) as caught:
        frame.decode(WRONG[kind])
    assert 10 < len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_a_list_too_deep_to_be_printed_is_still_refused_in_one_line() -> None:
    """`str` of so deep a list raises RecursionError, so no message may be made with it."""
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    assert shown(nested) == "list [[[[...]]]]"
    assert len(shown({"key" * 999: [b"x" * 999] * 999})) < 200


def test_a_claim_allocates_nothing() -> None:
    small = ["header of 4 GiB", "list of 2^32 - 1", "map of 2^32 - 1", "text of 2^32 - 1", "bytes of 2^32 - 1", "length of 2^60"]
    for kind in small:
        assert peak_bytes(partial(frame.decode, WRONG[kind])) < 64_000, kind


def test_nested_claims_allocate_nothing() -> None:
    """Each level promises 65,536 items that are not sent: lists made in advance would take 200 MB."""
    assert peak_bytes(lambda: frame.decode(framed(b"\x81\xa1t" + b"\xdd\x00\x01\x00\x00" * 400))) < 1_000_000


def test_an_oversized_frame_is_refused_before_it_is_read() -> None:
    huge = b"MU\x01\x00" + bytes(MAX_FRAME_BYTES - 3)
    with pytest.raises(FrameError, match=f"at most {MAX_FRAME_BYTES} bytes, got {MAX_FRAME_BYTES + 1}"):
        frame.decode(huge)
    assert peak_bytes(lambda: frame.decode(huge)) < 64_000


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    whole = frame.encode({"t": "x"}, [bytes(MAX_FRAME_BYTES - 32)])
    assert len(whole) == MAX_FRAME_BYTES and len(frame.decode(whole).buffers[0]) == MAX_FRAME_BYTES - 32
    with pytest.raises(FrameError, match="smaller steps"):
        frame.encode({"t": "x"}, [bytes(MAX_FRAME_BYTES - 31)])


def test_we_send_nothing_that_a_peer_would_refuse() -> None:
    with pytest.raises(FrameError, match="buffers"):
        frame.encode({}, [b""] * (MAX_BUFFERS + 1))
    with pytest.raises(FrameError, match="header"):
        frame.encode({"x": bytes(MAX_HEADER_BYTES)})


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(BadRequestError, match="expected a message of kind 'hello', got str 'x'"):
        frame.decode_kind(SAMPLE, "hello")
    with pytest.raises(BadRequestError, match="NoneType"):
        frame.decode_kind(frame.encode({}), "hello")


def test_every_form_of_msgpack_that_we_write_passes_the_bounds() -> None:
    """One value of every width, at the edges between widths."""
    sizes = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536)
    numbers = [sign * (2**power + d) for power in (0, 5, 7, 8, 15, 16, 31, 32, 62) for d in (-1, 0) for sign in (1, -1)]
    header: dict[str, Any] = {
        "n": [*numbers, 2**64 - 1, -(2**63), 1.5, None, True, False],
        "text": ["x" * size for size in sizes],
    }
    header |= {
        "raw": [bytes(size) for size in sizes],
        "list": [[0] * size for size in sizes[:8]],
        "map": {str(i): i for i in range(1_000)},
    }
    roomy = Bounds(MAX_HEADER_BYTES << 2, 1 << 17, 16)
    deep: Any = 7
    for _ in range(15):
        deep = [deep]  # 16 levels with the header itself
    for value in (header, {"list": [0] * 65_536}, {"t": deep}):
        assert frame.unpack_map(msgpack.packb(value), roomy) == value


def test_unknown_fields_are_ignored() -> None:
    decoded = frame.decode(framed(msgpack.packb({"t": "x", "from a newer peer": {"a": [1, 2.5, None, b""]}})))
    assert decoded.header["t"] == "x"


def deepest(length: int) -> bytes:
    """A map in `length` bytes that promises as much as it can: lists of as many items as it has bytes, in each other."""
    promise = b"\xdc" + length.to_bytes(2, "big")
    return (b"\x81\xa1t" + promise * ((length - 3) // 3)).ljust(length, b"\xc0")


def test_a_short_header_cannot_cost_much() -> None:
    data = framed(deepest(256))
    assert peak_bytes(lambda: frame.decode(data)) < 20_000


@pytest.mark.parametrize("value", [b"\xd6\xff\x00\x00\x00\x00", b"\x91" * 200 + b"\x90"], ids=["timestamp", "nested"])
def test_what_a_short_header_hides_is_no_message(value: bytes) -> None:
    with pytest.raises(SwarmError) as caught:
        inference.parse(framed(b"\x81\xa1t" + value))
    assert len(str(caught.value)) < 300
