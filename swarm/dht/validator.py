"""Which records count: signed by the peer under whose name they stand, bounded, and one per peer and key.

Runs on every peer that stores or reads a record. An entry of a key's dictionary is: subkey = the author's PeerID; value = bytes, packed
as msgpack `bin`, then 64 bytes of signature over key, subkey, payload and expiry (`protocols.records.signed_bytes`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from protocols.errors import SwarmError
from protocols.identity import SIGNATURE_BYTES, Identity, verify
from protocols.ids import parse_peer_id
from protocols.records import signed_bytes

MAX_VALUE_BYTES = 4_096
MAX_LIFE_S = 900.0
_STR8, _BIN = 0xD9, (0xC4, 0xC5)
_MAX_KNOWN = 20_000


class SignedRecords(RecordValidatorBase):  # type: ignore[misc]
    """Signs our own records, and judges everybody's. Signatures that were seen valid are remembered: a read checks hundreds again."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._subkey = MSGPackSerializer.dumps(str(identity.peer_id))
        self._known: set[bytes] = set()

    def sign_value(self, record: DHTRecord) -> bytes:
        assert record.subkey == self._subkey, "a peer announces only under its own PeerID"
        signature = self._identity.sign(signed_bytes(record.key, record.subkey, record.value, record.expiration_time))
        value: bytes = record.value
        return value + signature

    def strip_value(self, record: DHTRecord) -> bytes:
        value: bytes = record.value
        return value[:-SIGNATURE_BYTES]

    def validate(self, record: DHTRecord) -> bool:
        """False for anything that is not a signed, bounded entry of its author's. Never raises: hivemind would hang a reader."""
        value, subkey, expires_s = record.value, record.subkey, record.expiration_time
        if not isinstance(expires_s, float) or not math.isfinite(expires_s) or expires_s > get_dht_time() + MAX_LIFE_S:
            return False
        if not SIGNATURE_BYTES < len(value) <= MAX_VALUE_BYTES or value[0] not in _BIN:
            return False  # whatever does not unpack makes every reader's get() hang, so only one simple form is let in
        if not subkey or subkey[0] != _STR8:
            return False  # a value without subkey would replace the whole dictionary of its key
        seen = _digest(record)
        if seen in self._known:
            return True
        if not _is_signed(record):
            return False
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known.add(seen)
        return True


def _digest(record: DHTRecord) -> bytes:
    parts = (record.key, record.subkey, record.value, struct.pack(">d", record.expiration_time))
    lengths = struct.pack(">4I", *map(len, parts))
    return hashlib.blake2b(lengths + b"".join(parts), digest_size=24).digest()


def _is_signed(record: DHTRecord) -> bool:
    payload, signature = record.value[:-SIGNATURE_BYTES], record.value[-SIGNATURE_BYTES:]
    try:
        MSGPackSerializer.loads(payload)
        peer = parse_peer_id(MSGPackSerializer.loads(record.subkey))
        verify(peer, signature, signed_bytes(record.key, record.subkey, payload, record.expiration_time))
    except (ValueError, SwarmError):
        return False
    return True


def keep_valid(validator: SignedRecords, key: bytes, dictionary: Any) -> bool:
    """In place of hivemind's `_validate_dictionary`, which drops all entries of a replica for one bad one: drop only the bad ones."""
    if not isinstance(dictionary, DictionaryDHTValue):
        return False
    for subkey, (value, expires_s) in list(dictionary.data.items()):
        if not validator.validate(DHTRecord(key, MSGPackSerializer.dumps(subkey), value, expires_s)):
            del dictionary[subkey]
    return True


def key_id(key: str) -> DHTID:
    """Where in the DHT a key lives."""
    return DHTID.generate(key)
