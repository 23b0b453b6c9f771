"""A key's entries on the wire: hivemind's form, read within bounds."""

from __future__ import annotations

import math
import tracemalloc

import msgpack
import pytest
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.serializer import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from protocols import dictionary
from protocols.entries import MAX_VALUE_BYTES, SignedEntry
from protocols.errors import BadRequestError
from protocols.ids import peer_id_of

FAR_S = 4e9


def told(count: int) -> dictionary.Told:
    return [(peer_id_of(bytes([number]) * 32), SignedEntry(b"%d" % number, FAR_S + number)) for number in range(count)]


def test_what_is_packed_is_read_in_its_order() -> None:
    assert dictionary.parse(dictionary.pack(told(5))) == told(5) and dictionary.parse(dictionary.pack([])) == []


def test_hivemind_reads_ours_and_we_read_hiveminds() -> None:
    theirs = MSGPackSerializer.loads(dictionary.pack(told(3)))
    assert isinstance(theirs, DictionaryDHTValue)
    assert {peer: value for peer, (value, _) in theirs.items()} == {str(peer): entry.value for peer, entry in told(3)}
    assert dictionary.parse(MSGPackSerializer.dumps(theirs)) == told(3)


def packed(*items: object) -> bytes:
    result: bytes = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([math.inf, 0.0, list(items)])))
    return result


def test_items_of_another_form_cost_only_themselves() -> None:
    (good,) = told(1)
    peer = str(good[0])
    wrong = [[peer, b"v", math.nan], [b"x", b"v", FAR_S], [peer, "text", FAR_S], [peer, b"v", "late"], ["x" * 52, b"v", FAR_S]]
    wrong += [[peer, b"v" * (MAX_VALUE_BYTES + 1), FAR_S], [peer], 7, None]  # type: ignore[list-item]
    assert dictionary.parse(packed(*wrong, [peer, b"0", FAR_S])) == [good]


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", msgpack.packb([1]), msgpack.packb(msgpack.ExtType(0x51, b"")), msgpack.packb(msgpack.ExtType(0x50, b"\xc1")),
     msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([1, 2])))],
)  # fmt: skip
def test_anything_else_is_a_typed_refusal(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        dictionary.parse(data)


def test_a_promise_of_a_million_lists_builds_none() -> None:
    bomb = b"\x90" * 1_000_000
    inner = b"\x93\xc0\xc0\xdd" + len(bomb).to_bytes(4) + bomb
    for data in (bomb, msgpack.packb(msgpack.ExtType(0x50, inner))):
        tracemalloc.start()
        with pytest.raises(BadRequestError):
            dictionary.parse(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_entries_or_a_refusal(data: bytes) -> None:
    for attempt in (data, msgpack.packb(msgpack.ExtType(0x50, data))):
        try:
            dictionary.parse(attempt)
        except BadRequestError:
            continue
