"""What a peer keeps for others: newest wins, no store shortens a newer entry's life, only authors write."""

from __future__ import annotations

import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.utils.serializer import MSGPackSerializer

from protocols.entries import MAX_LIFE_S, MAX_VALUE_BYTES, SignedEntry, key_id
from protocols.identity import Identity, from_seed
from protocols.records import signed_bytes
from swarm.dht import storage
from swarm.dht.storage import BoundedStorage
from swarm.dht.validator import SignedRecords, keep_valid

storage.install()

ALICE, MALLORY = (from_seed(bytes([number]) * 32) for number in (11, 12))
KEY = DHTID.generate("a key")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """clock[0] is what hivemind takes for the time."""
    now = [1_000.0]
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: now[0])
    monkeypatch.setattr("swarm.dht.validator.get_dht_time", lambda: now[0])
    return now


def record(author: Identity, payload: object, expires_s: float, *, key: DHTID = KEY, subkey: str | None = None) -> DHTRecord:
    packed = MSGPackSerializer.dumps(subkey or str(author.peer_id))
    return signed(author, MSGPackSerializer.dumps(payload), packed, expires_s, key)


def signed(author: Identity, payload: bytes, subkey: bytes, expires_s: float, key: DHTID = KEY) -> DHTRecord:
    signature = author.sign(signed_bytes(key.to_bytes(), subkey, payload, expires_s))
    return DHTRecord(key.to_bytes(), subkey, payload + signature, expires_s)


def test_the_torch_free_key_is_hiveminds() -> None:
    assert key_id("a key") == KEY.to_bytes()


def test_a_replayed_older_entry_neither_wins_nor_shortens_the_newer_ones_life(clock: list[float]) -> None:
    here = BoundedStorage()
    assert here.store_subkey(KEY, "alice", b"new", 1_060.0)
    assert not here.store_subkey(KEY, "alice", b"old", 1_010.0)
    clock[0] = 1_030.0  # the old one's time is over
    assert here.store_subkey(KEY, "bob", b"other", 1_080.0)  # makes hivemind look for what has expired
    held = here.get(KEY)
    assert held and held.value.get("alice").value == b"new"


def test_an_equal_expiry_is_refused_and_a_later_one_wins(clock: list[float]) -> None:
    here = BoundedStorage()
    assert here.store_subkey(KEY, "alice", b"1", 1_060.0)
    assert not here.store_subkey(KEY, "alice", b"2", 1_060.0)
    assert here.store_subkey(KEY, "alice", b"3", 1_060.5)
    held = here.get(KEY)
    assert held and held.value.get("alice").value == b"3"


def test_merging_a_replicas_dictionary_is_guarded_too(clock: list[float]) -> None:
    """hivemind merges what it finds into the very dictionary that the storage holds."""
    mine = DictionaryDHTValue()
    mine.store("alice", b"new", 1_060.0)
    mine.store("alice", b"old", 1_010.0)
    clock[0] = 1_030.0
    assert dict(mine.items())["alice"].value == b"new"


def test_an_expired_entry_is_not_stored(clock: list[float]) -> None:
    assert not BoundedStorage().store_subkey(KEY, "alice", b"late", 999.0)


def test_a_key_and_a_peer_hold_a_bounded_number_of_entries(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_ENTRIES_PER_KEY", 3)
    monkeypatch.setattr(storage, "MAX_ENTRIES", 5)
    here, other = BoundedStorage(), DHTID.generate("other")
    assert [here.store_subkey(KEY, str(number), b"x", 1_010.0) for number in range(4)] == [True, True, True, False]
    assert [here.store_subkey(other, str(number), b"x", 1_060.0) for number in range(3)] == [True, True, False]
    assert here.store_subkey(KEY, "0", b"y", 1_011.0)  # what is there may be renewed
    clock[0] = 1_050.0
    assert here.store_subkey(other, "2", b"x", 1_060.0)  # what has expired makes room


def test_the_author_is_believed(clock: list[float]) -> None:
    validator = SignedRecords(MALLORY)
    good = record(ALICE, b"hello", 1_060.0)
    assert validator.validate(good) and validator.validate(good)
    handed = MSGPackSerializer.loads(validator.strip_value(good))  # what a reader gets: still signed
    entry = SignedEntry(handed, 1_060.0)
    assert entry.payload == b"hello"
    entry.check("a key", ALICE.peer_id, 1_000.0)


def test_what_we_sign_ourselves_is_valid_elsewhere(clock: list[float]) -> None:
    bare = DHTRecord(KEY.to_bytes(), MSGPackSerializer.dumps(str(ALICE.peer_id)), MSGPackSerializer.dumps(b"hello"), 1_060.0)
    value = SignedRecords(ALICE).sign_value(bare)
    assert SignedRecords(MALLORY).validate(DHTRecord(bare.key, bare.subkey, value, bare.expiration_time))


def forgeries() -> dict[str, DHTRecord]:
    good = record(ALICE, b"hello", 1_060.0)
    alice = good.subkey
    return {
        "signed by another": record(MALLORY, b"hello", 1_060.0, subkey=str(ALICE.peer_id)),
        "payload changed": DHTRecord(good.key, alice, good.value.replace(b"hello", b"hullo"), 1_060.0),
        "life prolonged": DHTRecord(good.key, alice, good.value, 1_061.0),
        "moved to another key": DHTRecord(DHTID.generate("other").to_bytes(), alice, good.value, 1_060.0),
        "moved to another name": DHTRecord(good.key, MSGPackSerializer.dumps(str(MALLORY.peer_id)), good.value, 1_060.0),
        "too long a life": record(ALICE, b"hello", 1_000.0 + MAX_LIFE_S + 1),
        "no end of life": record(ALICE, b"hello", float("inf")),
        "life is no number": record(ALICE, b"hello", float("nan")),
        "too large": record(ALICE, b"x" * MAX_VALUE_BYTES, 1_060.0),
        "no signature": DHTRecord(good.key, alice, good.value[:-64], 1_060.0),
        "empty": DHTRecord(good.key, alice, b"", 1_060.0),
        "a plain value": signed(ALICE, MSGPackSerializer.dumps(b"hello"), DHTProtocol.IS_REGULAR_VALUE, 1_060.0),
        "a dictionary's tag": signed(ALICE, MSGPackSerializer.dumps(b"hello"), DHTProtocol.IS_DICTIONARY, 1_060.0),
        "text instead of bytes": record(ALICE, "hello", 1_060.0),
        "a map instead of bytes": record(ALICE, {"a": 1}, 1_060.0),
        "does not unpack": signed(ALICE, b"\xc4\xff", alice, 1_060.0),
        "bytes after the end": signed(ALICE, MSGPackSerializer.dumps(b"hello") + b"x", alice, 1_060.0),
        "a name that is no peer": record(ALICE, b"hello", 1_060.0, subkey="x" * 52),
    }


@pytest.mark.parametrize("kind", list(forgeries()))
def test_a_forged_entry_is_refused_and_never_raises(kind: str, clock: list[float]) -> None:
    assert SignedRecords(MALLORY).validate(forgeries()[kind]) is False


def test_one_bad_entry_of_a_replica_does_not_cost_the_good_ones(clock: list[float]) -> None:
    found = DictionaryDHTValue()
    for entry in (record(ALICE, b"good", 1_060.0), record(MALLORY, b"too long", 5_000.0)):
        found.store(MSGPackSerializer.loads(entry.subkey), entry.value, entry.expiration_time)
    assert keep_valid(SignedRecords(ALICE), KEY.to_bytes(), found)
    assert list(found.data) == [str(ALICE.peer_id)]
    assert not keep_valid(SignedRecords(ALICE), KEY.to_bytes(), ["no dictionary"])


def test_a_dictionary_from_a_stranger_is_rebuilt_from_what_makes_sense(clock: list[float]) -> None:
    items = [
        ["alice", b"x", 1_060.0],
        ["bob", b"x", float("nan")],
        [b"carol", b"x", 1_060.0],
        ["dave", "x", 1_060.0],
        ["eve", b"x", "late"],
    ]
    found = DictionaryDHTValue.unpackb(MSGPackSerializer.dumps([0, float("inf"), items]))
    assert dict(found.items()).keys() == {"alice"}
    assert found.latest_expiration_time == 1_060.0 and len(found) == 1
