"""Signed entries count only as signed; answers keep their bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from protocols.directory import MAX_ENTRIES, MAX_REPLY_BYTES, DirectoryReply, DirectoryRequest, belongs, encode_names
from protocols.entries import MAX_LIFE_S, MAX_VALUE_BYTES, SignedEntry, key_id, packed_subkey
from protocols.errors import UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import ModelId, Span, peer_id_of
from protocols.records import PeerRecord, signed_bytes
from tests.hosting import hosted
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


def test_an_answer_holds_what_its_teller_puts_first() -> None:
    """Beyond the bounds the rest is left out; how long an entry lives says nothing, since its author chose that."""
    many = [(peer_id_of(number.to_bytes(32, "big")), SignedEntry(b"v" * 3_000, float(number))) for number in range(3_000)]
    data = DirectoryReply(tuple(many)).encode()
    read = DirectoryReply.parse(data)
    assert len(read.entries) == MAX_REPLY_BYTES // 3_000 < MAX_ENTRIES
    assert [entry.expires_s for _peer, entry in read.entries] == [float(n) for n in range(len(read.entries))]
    small = DirectoryReply(tuple((peer, SignedEntry(b"v", entry.expires_s)) for peer, entry in many))
    assert len(DirectoryReply.parse(small.encode()).entries) == MAX_ENTRIES


# --- what may stand under a key


def record(author: Identity, **changes: Any) -> bytes:
    span = hosted(ModelId("tiny", "a" * 64), Span(0, 4), 4)
    return PeerRecord(peer=author.peer_id, **{"hosted": span, **changes}).encode()


def at(author: Identity, model: str, swarm: str = "s") -> bytes:
    return key_id(DirectoryRequest(swarm=swarm, model=model).key(author.peer_id))


def test_a_record_stands_under_the_models_that_it_names_and_names_under_theirs() -> None:
    assert belongs("s", at(ALICE, "tiny"), ALICE.peer_id, record(ALICE))
    assert belongs("s", at(ALICE, ""), ALICE.peer_id, encode_names(["tiny", "big"]))
    moved = record(ALICE, also=("big",))  # announced under a model that it no longer hosts
    assert belongs("s", at(ALICE, "big"), ALICE.peer_id, moved) and PeerRecord.parse(moved).also == ("big",)
    assert belongs("s", at(ALICE, "big"), ALICE.peer_id, record(ALICE, hosted=(), also=("big",)))


@pytest.mark.parametrize(
    ("key", "author", "payload"),
    [
        (b"j" * 20, ALICE, record(ALICE)),
        (at(ALICE, "tiny", "another swarm"), ALICE, record(ALICE)),
        (at(ALICE, "big"), ALICE, record(ALICE)),
        (at(ALICE, "tiny"), ALICE, record(BOB)),
        (at(ALICE, "tiny"), ALICE, b"junk" * 300),
        (at(ALICE, "tiny"), ALICE, encode_names(["tiny"])),
        (at(ALICE, ""), ALICE, record(ALICE)),
        (at(ALICE, ""), ALICE, b"junk"),
        (b"j" * 20, ALICE, encode_names(["tiny"])),
    ],
)
def test_what_is_not_ours_is_kept_nowhere(key: bytes, author: Identity, payload: bytes) -> None:
    assert not belongs("s", key, author.peer_id, payload)


def test_a_key_of_another_bucket_is_not_the_authors() -> None:
    wrong = [key for key in DirectoryRequest(swarm="s", model="tiny").all_keys() if key_id(key) != at(ALICE, "tiny")]
    assert len(wrong) == 7 and not any(belongs("s", key_id(key), ALICE.peer_id, record(ALICE)) for key in wrong)


def test_a_model_and_the_names_of_all_models_stand_under_other_keys() -> None:
    asked, names = DirectoryRequest(swarm="s", model="tiny"), DirectoryRequest(swarm="s", model="")
    assert len({*asked.all_keys(), *names.all_keys(), *DirectoryRequest(swarm="t", model="tiny").all_keys()}) == 24
    assert asked.key(ALICE.peer_id) in asked.all_keys() and names.key(ALICE.peer_id) in names.all_keys()
