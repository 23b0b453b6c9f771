"""The entries of one key, as members of the DHT send them.

The form is hivemind's: a msgpack extension of type 0x50 around [limit, latest expiry, [[subkey, value, expiry], …]]. The first two are
claims of the sender that nothing depends on, so they are written for older members and not read. Signatures are not checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from protocols import msgpack_bounds
from protocols.entries import MAX_VALUE_BYTES, SignedEntry
from protocols.errors import BadRequestError, FrameError, shown
from protocols.ids import PeerId, parse_peer_id

MAX_ENTRIES: Final = 1_024
"""Entries of one key that are read at most."""

_TYPE: Final = 0x50
_MARKERS: Final = frozenset((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))
"""First bytes of an extension: anything else is not unpacked, since it may promise a million lists."""

Told = list[tuple[PeerId, SignedEntry]]
"""Entries with the peers under whose names they stand, in the order in which they were told."""


def pack(entries: Iterable[tuple[PeerId, SignedEntry]]) -> bytes:
    """The bytes of these entries, in this order."""
    told = list(entries)
    items = [[str(peer), entry.value, entry.expires_s] for peer, entry in told]
    latest_s = max((entry.expires_s for _peer, entry in told), default=-math.inf)
    packed: bytes = msgpack.packb(msgpack.ExtType(_TYPE, msgpack.packb([math.inf, latest_s, items])))
    return packed


def parse(data: bytes) -> Told:
    """What a member sent; BadRequestError if it is no dictionary. Items of another form than ours are left out."""
    if not data or data[0] not in _MARKERS:
        raise BadRequestError(f"a key's entries are an extension of msgpack, got {shown(data[:8])}")
    try:
        outer = msgpack.unpackb(data)
        if not isinstance(outer, msgpack.ExtType) or outer.code != _TYPE:
            raise BadRequestError(f"a key's entries are an extension of type {_TYPE:#x}, got {shown(outer)}")
        msgpack_bounds.check(outer.data, 4 * MAX_ENTRIES + 16, MAX_ENTRIES + 8)
        inner = msgpack.unpackb(outer.data)
    except (ValueError, TypeError, FrameError, msgpack.exceptions.UnpackException) as error:
        raise BadRequestError(f"a key's entries cannot be read: {str(error)[:100] or type(error).__name__}") from None
    if not isinstance(inner, list) or len(inner) != 3 or not isinstance(inner[2], list):
        raise BadRequestError(f"a key's entries are [limit, latest expiry, items], got {shown(inner)}")
    return [read for item in inner[2] if (read := _item(item)) is not None]


def _item(item: Any) -> tuple[PeerId, SignedEntry] | None:
    if not isinstance(item, list) or len(item) != 3:
        return None
    subkey, value, expires_s = item
    if not isinstance(value, bytes) or len(value) > MAX_VALUE_BYTES:
        return None
    if not isinstance(expires_s, float) or not math.isfinite(expires_s):
        return None
    try:
        return parse_peer_id(subkey), SignedEntry(value, expires_s)
    except BadRequestError:
        return None
