"""Signatures of entries: makes ours, checks others' once.

Results are remembered.

A reader meets the same entries again with each look. What an entry is, and what makes it its author's: `protocols/entries.py`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from protocols import entries
from protocols.entries import SignedEntry, packed_subkey
from protocols.errors import UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import PeerId

_MAX_SEEN = 20_000


class Signatures:
    """`clock` gives Unix time."""

    def __init__(self, identity: Identity, clock: Callable[[], float]) -> None:
        self._identity, self._clock = identity, clock
        self._seen: set[bytes] = set()

    def seal(self, key: bytes, payload: bytes, expires_s: float) -> SignedEntry:
        """What we say under a key."""
        return entries.seal(self._identity, key, payload, expires_s)

    def is_seen(self, key: bytes, peer: PeerId, entry: SignedEntry) -> bool:
        """Was this very entry valid before?"""
        return _digest(key, peer, entry) in self._seen

    def is_valid(self, key: bytes, peer: PeerId, entry: SignedEntry) -> bool:
        """Is it bounded, and signed by the peer under whose name it stands? Never raises."""
        try:
            entries.check_form(packed_subkey(peer), entry.value, entry.expires_s, self._clock())
            seen = _digest(key, peer, entry)
            if seen in self._seen:
                return True
            entries.check(key, packed_subkey(peer), entry.value, entry.expires_s, self._clock())
        except UnauthenticatedError:
            return False
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add(seen)
        return True


def _digest(key: bytes, peer: PeerId, entry: SignedEntry) -> bytes:
    parts = (key, peer.encode(), entry.value, struct.pack(">d", entry.expires_s))
    lengths = struct.pack(">4I", *map(len, parts))
    return hashlib.blake2b(lengths + b"".join(parts), digest_size=24).digest()
