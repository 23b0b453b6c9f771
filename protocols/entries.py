"""A signed entry: what one peer says under one DHT key.

It is kept in the bytes that were signed and stored.

Who stores it, who reads it, and a thin client that has it from a gRPC peer all judge it by `check`: no peer can write in
another's name, and no entry lives longer than its author said. In the DHT an entry's subkey is its author's PeerID, and its value
the payload packed as msgpack `bin`, then 64 bytes of signature over key, subkey, packed payload and expiry.

The directory's own keys are named here too: both who announces and who asks by gRPC must hash the same ones.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import msgpack

from protocols.defaults import RECORD_LIFE_S
from protocols.errors import BadRequestError, SwarmError, UnauthenticatedError
from protocols.identity import SIGNATURE_BYTES, Identity, verify
from protocols.ids import PeerId, parse_peer_id
from protocols.records import signed_bytes

MAX_VALUE_BYTES: Final = 4_096
"""Of a packed payload and its signature."""

MAX_LIFE_S: Final = RECORD_LIFE_S + 30.0
"""Seconds to the furthest expiry that peers accept: a record's life, and how far clocks may differ (`swarm/meeting/clocks.py`)."""

_STR8, _BIN = 0xD9, (0xC4, 0xC5)


def key_id(key: str) -> bytes:
    """The 20 bytes under which the DHT stores a key: what signatures cover (hivemind's `DHTID.generate`)."""
    return hashlib.sha1(msgpack.packb(key), usedforsecurity=False).digest()


def model_key(swarm: str, model: str, bucket: int) -> str:
    """Where the peers of a model whose PeerID falls into `bucket` announce themselves."""
    return f"murmuration/1\0{swarm}\0model\0{model}\0{bucket}"


def names_key(swarm: str, bucket: int) -> str:
    """Where such peers say the names of their models."""
    return f"murmuration/1\0{swarm}\0names\0{bucket}"


def packed_subkey(peer: PeerId) -> bytes:
    """A PeerID as the subkey that signatures cover."""
    packed: bytes = msgpack.packb(str(peer))
    return packed


def seal(author: Identity, key: bytes, payload: bytes, expires_s: float) -> SignedEntry:
    """What `author` says under a key (`key_id`) until `expires_s`; an empty payload is a withdrawal."""
    packed: bytes = msgpack.packb(payload)
    signature = author.sign(signed_bytes(key, packed_subkey(author.peer_id), packed, expires_s))
    return SignedEntry(packed + signature, expires_s)


def check(key: bytes, subkey: bytes, value: bytes, expires_s: object, now_s: float) -> PeerId:
    """The author of a bounded entry that it has signed; UnauthenticatedError says what is wrong with any other.

    key: as by `key_id`; value: packed payload and signature; expires_s, now_s: Unix time. An entry that has expired is still its
    author's: the reader looks at the time.
    """
    check_form(subkey, value, expires_s, now_s)
    assert isinstance(expires_s, float)
    packed, signature = value[:-SIGNATURE_BYTES], value[-SIGNATURE_BYTES:]
    try:
        if not isinstance(msgpack.unpackb(packed), bytes):
            raise UnauthenticatedError("an entry's payload is bytes")
        peer = parse_peer_id(msgpack.unpackb(subkey))
        verify(peer, signature, signed_bytes(key, subkey, packed, expires_s))
    except UnauthenticatedError:
        raise
    except (ValueError, SwarmError, msgpack.exceptions.UnpackException) as error:
        raise UnauthenticatedError(f"an entry cannot be read: {str(error)[:200] or type(error).__name__}") from None
    return peer


def check_form(subkey: bytes, value: bytes, expires_s: object, now_s: float) -> None:
    """What needs no signature to be seen; UnauthenticatedError otherwise."""
    if not isinstance(expires_s, float) or not math.isfinite(expires_s) or expires_s > now_s + MAX_LIFE_S:
        raise UnauthenticatedError(f"an entry ends within {MAX_LIFE_S:.0f} s of now, got {str(expires_s)[:40]}")
    if not SIGNATURE_BYTES < len(value) <= MAX_VALUE_BYTES or value[0] not in _BIN:
        # whatever does not unpack makes every reader's get() in hivemind hang, so only one simple form is let in
        raise UnauthenticatedError(f"an entry's value is packed bytes and a signature, at most {MAX_VALUE_BYTES} bytes")
    if not subkey or subkey[0] != _STR8:  # a value without subkey would replace the whole dictionary of its key
        raise UnauthenticatedError("an entry's subkey is its author's PeerID")


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """What one peer says under a key, as it was stored; `payload` is worth something only after `check`."""

    value: bytes
    """Packed payload, then the signature."""
    expires_s: float
    """Unix time."""

    @property
    def payload(self) -> bytes:
        """What was said; empty is a withdrawal. BadRequestError if the value does not unpack to bytes."""
        try:
            is_bytes = self.value[:1] and self.value[0] in _BIN
            payload = msgpack.unpackb(self.value[:-SIGNATURE_BYTES]) if is_bytes else None
        except (ValueError, msgpack.exceptions.UnpackException):
            payload = None
        if not isinstance(payload, bytes):
            raise BadRequestError("an entry's value does not unpack to bytes")
        return payload

    def check(self, key: str, peer: PeerId, now_s: float) -> None:
        """UnauthenticatedError if this is not what `peer` said under `key`."""
        check(key_id(key), packed_subkey(peer), self.value, self.expires_s, now_s)
