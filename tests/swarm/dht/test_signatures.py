"""An entry's author is believed; forgeries are refused without raising."""

from __future__ import annotations

import msgpack
import pytest

from protocols.entries import MAX_LIFE_S, MAX_VALUE_BYTES, SignedEntry, key_id, packed_subkey, seal
from protocols.identity import Identity, from_seed
from protocols.ids import PeerId
from protocols.records import signed_bytes
from swarm.dht.signatures import Signatures

ALICE, MALLORY = (from_seed(bytes([number]) * 32) for number in (11, 12))
KEY = key_id("a key")
NOW_S = 1_000.0


def signatures() -> Signatures:
    return Signatures(MALLORY, lambda: NOW_S)


def signed(author: Identity, packed: bytes, expires_s: float = 1_060.0) -> SignedEntry:
    return SignedEntry(packed + author.sign(signed_bytes(KEY, packed_subkey(author.peer_id), packed, expires_s)), expires_s)


def test_the_author_is_believed_and_the_second_look_is_free() -> None:
    here, entry = signatures(), seal(ALICE, KEY, b"hello", 1_060.0)
    assert not here.is_seen(KEY, ALICE.peer_id, entry)
    assert here.is_valid(KEY, ALICE.peer_id, entry) and here.is_seen(KEY, ALICE.peer_id, entry)
    assert entry.payload == b"hello"
    entry.check("a key", ALICE.peer_id, NOW_S)


def test_what_we_sign_ourselves_is_valid_elsewhere() -> None:
    mine = Signatures(ALICE, lambda: NOW_S).seal(KEY, b"hello", 1_060.0)
    assert signatures().is_valid(KEY, ALICE.peer_id, mine)


def forgeries() -> dict[str, tuple[bytes, PeerId, SignedEntry]]:
    good, alice = seal(ALICE, KEY, b"hello", 1_060.0), ALICE.peer_id
    return {
        "signed by another": (KEY, alice, seal(MALLORY, KEY, b"hello", 1_060.0)),
        "payload changed": (KEY, alice, SignedEntry(good.value.replace(b"hello", b"hullo"), 1_060.0)),
        "life prolonged": (KEY, alice, SignedEntry(good.value, 1_061.0)),
        "moved to another key": (key_id("other"), alice, good),
        "moved to another name": (KEY, MALLORY.peer_id, good),
        "too long a life": (KEY, alice, seal(ALICE, KEY, b"hello", NOW_S + MAX_LIFE_S + 1)),
        "no end of life": (KEY, alice, seal(ALICE, KEY, b"hello", float("inf"))),
        "life is no number": (KEY, alice, seal(ALICE, KEY, b"hello", float("nan"))),
        "too large": (KEY, alice, seal(ALICE, KEY, b"x" * MAX_VALUE_BYTES, 1_060.0)),
        "no signature": (KEY, alice, SignedEntry(good.value[:-64], 1_060.0)),
        "empty": (KEY, alice, SignedEntry(b"", 1_060.0)),
        "text instead of bytes": (KEY, alice, signed(ALICE, msgpack.packb("hello"))),
        "a map instead of bytes": (KEY, alice, signed(ALICE, msgpack.packb({"a": 1}))),
        "does not unpack": (KEY, alice, signed(ALICE, b"\xc4\xff")),
        "bytes after the end": (KEY, alice, signed(ALICE, msgpack.packb(b"hello") + b"x")),
        "a name that is no peer": (KEY, PeerId("x" * 52), good),
    }


@pytest.mark.parametrize("kind", list(forgeries()))
def test_a_forged_entry_is_refused_and_never_raises(kind: str) -> None:
    assert signatures().is_valid(*forgeries()[kind]) is False


def test_a_record_lives_at_most_ninety_seconds_and_clocks_may_differ_by_thirty() -> None:
    assert MAX_LIFE_S == 90.0
    assert signatures().is_valid(KEY, ALICE.peer_id, seal(ALICE, KEY, b"from a clock 30 s ahead", NOW_S + 30 + 60))
