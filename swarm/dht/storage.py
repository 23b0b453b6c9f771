"""What this peer keeps for others: bounded, and no store may shorten the life of something newer.

hivemind's `TimedStorage.store` notes the expiry of a store before it refuses it, so the replay of an older record would end the newer
one early (shown in research/transport.md 3.2). Here a store whose expiry is not later than what is held is refused before it
touches anything. Dictionaries also arrive from other peers and are merged into ours, so they are rebuilt here from checked entries.
"""

from __future__ import annotations

import math
from typing import Any

import hivemind.dht.protocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import TimedStorage

MAX_KEYS = 10_000
MAX_ENTRIES_PER_KEY = 1_000
"""A key's dictionary is one message of p2pd, which carries at most 4 MiB; our records have at most 1.6 KiB."""

MAX_ENTRIES = 50_000
"""Of all keys together: 75 MB of records of ours."""

_unguarded_store = TimedStorage.store


def _would_lose(held: TimedStorage, key: Any, expires_s: float) -> bool:
    entry = held.data.get(key)
    return entry is not None and expires_s <= entry.expiration_time


def _store_entry(self: DictionaryDHTValue, key: str, value: bytes, expiration_time: float) -> bool:
    """In place of DictionaryDHTValue.store."""
    if _would_lose(self, key, expiration_time) or (key not in self.data and len(self.data) >= MAX_ENTRIES_PER_KEY):
        return False
    self.latest_expiration_time = max(self.latest_expiration_time, expiration_time)
    return bool(_unguarded_store(self, key, value, expiration_time))


def _unpack(cls: type[DictionaryDHTValue], raw: bytes) -> DictionaryDHTValue:
    """In place of DictionaryDHTValue.unpackb: limits and expiries that a stranger claims are not believed."""
    _maxsize, _latest, items = MSGPackSerializer.loads(raw)
    result = cls()
    with result.freeze():
        for key, value, expires_s in items:
            if isinstance(key, str) and isinstance(value, bytes) and isinstance(expires_s, float) and math.isfinite(expires_s):
                result.store(key, value, expires_s)
    return result


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """A peer's own part of the DHT: dictionaries of signed entries, by key."""

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(min(maxsize or MAX_KEYS, MAX_KEYS))
        self._num_entries = 0

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: str | None = None) -> bool:
        if subkey is None and _would_lose(self, key, expiration_time):
            return False
        return bool(super().store(key, value, expiration_time, subkey))

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        held = self.get(key)
        entries = held.value.data if held and isinstance(held.value, DictionaryDHTValue) else {}
        is_new = subkey not in entries
        if not self._has_room() if is_new else expiration_time <= entries[subkey].expiration_time:
            return False
        is_stored = bool(super().store_subkey(key, subkey, value, expiration_time))
        self._num_entries += is_new and is_stored
        return is_stored

    def _has_room(self) -> bool:
        if self._num_entries >= MAX_ENTRIES:  # counts what has expired since: look again
            self._num_entries = sum(len(item.value) for _key, item in self.items() if isinstance(item.value, DictionaryDHTValue))
        return self._num_entries < MAX_ENTRIES


def install() -> None:
    """Put these in place of hivemind's, for this process; again is harmless."""
    DictionaryDHTValue.store = _store_entry
    DictionaryDHTValue.unpackb = classmethod(_unpack)
    hivemind.dht.protocol.DHTLocalStorage = BoundedStorage
