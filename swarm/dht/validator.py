"""Which records count: signed by the peer under whose name they stand, bounded, and one per peer and key.

Runs on every peer that stores or reads a record. What an entry is, and what makes it its author's: `protocols/entries.py`.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from protocols import entries
from protocols.errors import UnauthenticatedError
from protocols.identity import Identity
from protocols.records import signed_bytes

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
        """What a reader unpacks: here the whole value, since our readers pass signatures on (`entries.SignedEntry`)."""
        value: bytes = MSGPackSerializer.dumps(record.value)
        return value

    def validate(self, record: DHTRecord) -> bool:
        """False for anything that is not a signed, bounded entry of its author's. Never raises: hivemind would hang a reader."""
        now_s = get_dht_time()
        try:
            entries.check_form(record.subkey, record.value, record.expiration_time, now_s)
            seen = _digest(record)
            if seen in self._known:
                return True
            entries.check(record.key, record.subkey, record.value, record.expiration_time, now_s)
        except UnauthenticatedError:
            return False
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known.add(seen)
        return True


def _digest(record: DHTRecord) -> bytes:
    parts = (record.key, record.subkey, record.value, struct.pack(">d", record.expiration_time))
    lengths = struct.pack(">4I", *map(len, parts))
    return hashlib.blake2b(lengths + b"".join(parts), digest_size=24).digest()


def keep_valid(validator: SignedRecords, key: bytes, dictionary: Any) -> bool:
    """In place of hivemind's `_validate_dictionary`, which drops all entries of a replica for one bad one: drop only the bad ones."""
    if not isinstance(dictionary, DictionaryDHTValue):
        return False
    for subkey, (value, expires_s) in list(dictionary.data.items()):
        if not validator.validate(DHTRecord(key, MSGPackSerializer.dumps(subkey), value, expires_s)):
            del dictionary[subkey]
    return True
