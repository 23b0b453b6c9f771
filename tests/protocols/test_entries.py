"""Signed entries: only the author's own words count, and a directory's answer keeps within its bounds."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from protocols.directory import MAX_ENTRIES, MAX_REPLY_BYTES, DirectoryReply, DirectoryRequest
from protocols.entries import MAX_LIFE_S, MAX_VALUE_BYTES, SignedEntry, key_id, packed_subkey
from protocols.errors import UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import peer_id_of
from protocols.records import signed_bytes
from tests.protocols.samples import ALICE, BOB

NOW_S = 1_000.0


def entry(author: Identity, payload: bytes = b"hello", expires_s: float = 1_060.0, key: str = "a key") -> SignedEntry:
    packed = msgpack.packb(payload)
    signature = author.sign(signed_bytes(key_id(key), packed_subkey(author.peer_id), packed, expires_s))
    return SignedEntry(packed + signature, expires_s)


def test_an_authors_words_are_believed_under_their_key_until_their_time() -> None:
    good = entry(ALICE)
    good.check("a key", ALICE.peer_id, NOW_S)
    assert good.payload == b"hello"
    assert entry(ALICE, b"").payload == b""


@pytest.mark.parametrize(
    ("what", "key", "peer"),
    [
        (entry(ALICE), "another key", ALICE.peer_id),
        (entry(ALICE), "a key", BOB.peer_id),
        (replace(entry(ALICE), expires_s=1_061.0), "a key", ALICE.peer_id),
        (replace(entry(ALICE), value=b"\xc4\x05jello" + entry(ALICE).value[-64:]), "a key", ALICE.peer_id),
        (entry(ALICE, expires_s=NOW_S + MAX_LIFE_S + 1), "a key", ALICE.peer_id),
        (entry(ALICE, b"x" * MAX_VALUE_BYTES), "a key", ALICE.peer_id),
        (SignedEntry(b"", 1_060.0), "a key", ALICE.peer_id),
        (SignedEntry(b"\xc4" + entry(ALICE).value[-64:], 1_060.0), "a key", ALICE.peer_id),
        (replace(entry(ALICE), expires_s=float("nan")), "a key", ALICE.peer_id),
    ],
)
def test_anything_else_is_not(what: SignedEntry, key: str, peer: str) -> None:
    with pytest.raises(UnauthenticatedError):
        what.check(key, peer, NOW_S)  # type: ignore[arg-type]


def test_an_answer_holds_what_was_said_last() -> None:
    """Beyond the bounds, the entries that end first are left out: they were said first."""
    many = [(peer_id_of(number.to_bytes(32, "big")), SignedEntry(b"v" * 3_000, float(number))) for number in range(3_000)]
    data = DirectoryReply(tuple(many)).encode()
    read = DirectoryReply.parse(data)
    assert len(read.entries) == MAX_REPLY_BYTES // 3_000 < MAX_ENTRIES
    assert [entry.expires_s for _peer, entry in read.entries] == [float(2_999 - n) for n in range(len(read.entries))]
    small = DirectoryReply(tuple((peer, SignedEntry(b"v", entry.expires_s)) for peer, entry in many))
    assert len(DirectoryReply.parse(small.encode()).entries) == MAX_ENTRIES


def test_a_model_and_the_names_of_all_models_stand_under_other_keys() -> None:
    asked, names = DirectoryRequest(swarm="s", model="tiny"), DirectoryRequest(swarm="s", model="")
    assert len({*asked.all_keys(), *names.all_keys(), *DirectoryRequest(swarm="t", model="tiny").all_keys()}) == 24
    assert asked.key(ALICE.peer_id) in asked.all_keys() and names.key(ALICE.peer_id) in names.all_keys()
