"""Holdings by pieces: their form on the wire, and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError, FrameError
from protocols.pieces import MAX_PARTIAL, MAX_PARTIAL_BYTES, Holdings, pack_partial, parse_answer, parse_partial
from protocols.weights import PIECE_BYTES, TensorEntry


def entries_of(*sizes: int) -> list[TensorEntry]:
    """Tensors of so many pieces."""
    return [TensorEntry(f"t{number}", "U8", (size * PIECE_BYTES,), bytes(32)) for number, size in enumerate(sizes)]


ENTRIES = entries_of(3, 1, 20, 9)


def test_the_form_never_changes() -> None:
    packed = pack_partial({2: b"\x01\x00\x08", 0: b"\x05"})
    assert packed.hex() == "000000000500000002010008"
    sent = Holdings(bits=b"\x0a", partial=packed).encode()
    assert sent == (
        b"MU\x01\x00\x00\x00\x00\x11\x82\xa1t\xa8holdings\xa1b\x92\x01\x0c" + bytes(7) + b"\x0a" + bytes(15) + packed + bytes(4)
    )
    assert parse_answer(sent) == Holdings(bits=b"\x0a", partial=packed)
    assert parse_answer(Holdings(bits=b"\x0a").encode()) == Holdings(bits=b"\x0a"), (
        "without a second buffer: no tensor is here in part"
    )


@given(st.lists(st.integers(0, 40), max_size=80), st.data())
def test_what_is_packed_is_parsed(sizes: list[int], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, len(sizes) - 1), max_size=MAX_PARTIAL)) if sizes else set()
    held = {tensor: data.draw(st.binary(min_size=-(-sizes[tensor] // 8), max_size=-(-sizes[tensor] // 8))) for tensor in chosen}
    assert parse_partial(pack_partial(held), entries_of(*sizes)) == held


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_have_the_form(data: bytes) -> None:
    try:
        found = parse_partial(data, ENTRIES)
    except BadRequestError:
        return
    assert pack_partial(found) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0\0", "end at byte 5 of the holdings, which have 3"),
        (b"\0\0\0\0", "end at byte 5 of the holdings, which have 4"),
        (b"\0\0\0\x02\xff\xff", "end at byte 7"),
        (b"\0\0\0\x04\xff", "of 4, in order; got 4 after -1"),
        (b"\xff\xff\xff\xff\xff", "got 4294967295 after -1"),
        (b"\0\0\0\0\x01" * 2, "got 0 after 0"),
        (b"\0\0\0\x01\x01\0\0\0\0\x01", "got 0 after 1"),
    ],
)
def test_what_is_not_of_the_manifest_or_cut_off_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        parse_partial(data, ENTRIES)


def test_no_more_than_the_limits_is_packed_or_taken() -> None:
    entries = entries_of(*[8] * 100)
    held = dict.fromkeys(range(100), b"\x01")
    assert list(parse_partial(pack_partial(held), entries)) == list(range(MAX_PARTIAL))
    too_many = b"".join(tensor.to_bytes(4, "big") + b"\x01" for tensor in range(MAX_PARTIAL + 1))
    with pytest.raises(BadRequestError, match=f"at most {MAX_PARTIAL} tensors"):
        parse_partial(too_many, entries)
    large = {tensor: bytes(MAX_PARTIAL_BYTES // 3) for tensor in range(4)}
    assert len(pack_partial(large)) == 2 * (4 + MAX_PARTIAL_BYTES // 3)
    with pytest.raises(FrameError, match="at most"):
        parse_answer(Holdings(bits=b"", partial=bytes(MAX_PARTIAL_BYTES + 1)).encode())
