"""An identity: the Ed25519 libp2p key of a peer.

It names the peer, signs, and proves its certificate.

The PeerID contains the public key (`ids.py`), so its signatures can be checked by anyone who has the PeerID, with no further data.
Keys are made and stored by `swarm/peer/keys.py`: this file has neither randomness nor files. Imports cryptography.
Source: libp2p peer ids, https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md; the file form is what p2pd reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.errors import BadRequestError, ConfigError, UnauthenticatedError
from protocols.ids import PUBLIC_KEY_BYTES, PeerId, peer_id_of, public_bytes, short_peer

SIGNATURE_BYTES = 64
PRIVATE_BYTES = 68
_PRIVATE_PREFIX = bytes.fromhex("08011240")
"""Protobuf PrivateKey{type: Ed25519, data: 64 bytes}; the data are the 32-byte seed, then the public key."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and the PeerID that belongs to it. Its repr shows the PeerID only."""

    private_key: Ed25519PrivateKey = field(repr=False)
    peer_id: PeerId = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "peer_id", peer_id_of(self.public_bytes))

    @property
    def public_bytes(self) -> bytes:
        """32 bytes."""
        return self.private_key.public_key().public_bytes_raw()

    @property
    def private_bytes(self) -> bytes:
        """The 68-byte file that p2pd reads: prefix, seed, public key. Its holder can act as this peer."""
        return _PRIVATE_PREFIX + self.private_key.private_bytes_raw() + self.public_bytes

    def sign(self, data: bytes) -> bytes:
        """64 bytes. `data` begins with a context ("murmuration-record/1\\0" …), so that no signature serves two purposes."""
        return self.private_key.sign(data)


def parse_private(data: bytes) -> Identity:
    """Read the 68-byte file form; ConfigError if it is something else, or its two halves do not belong together."""
    if len(data) != PRIVATE_BYTES or not data.startswith(_PRIVATE_PREFIX):
        raise ConfigError(
            f"not an Ed25519 libp2p key: expected {PRIVATE_BYTES} bytes that start with {_PRIVATE_PREFIX.hex()}, "
            f"got {len(data)}; name another identity file or, if this was one, remove it and a new identity is made"
        )
    identity = Identity(Ed25519PrivateKey.from_private_bytes(data[4:36]))
    if identity.public_bytes != data[36:]:
        raise ConfigError(
            "the identity file is damaged: its two keys do not belong together; restore it, or remove it and a new one is made"
        )
    return identity


def public_key(peer: PeerId) -> Ed25519PublicKey:
    """The public key inside a PeerID; BadRequestError if there is none."""
    return Ed25519PublicKey.from_public_bytes(public_bytes(peer))


def verify(peer: PeerId, signature: bytes, data: bytes) -> None:
    """Return if `peer` has signed `data`; UnauthenticatedError for anything else, a text that is no PeerID included."""
    try:
        public_key(peer).verify(signature, data)
    except (InvalidSignature, BadRequestError, ValueError):
        raise UnauthenticatedError(
            f"the signature over {len(data)} bytes is not by peer {short_peer(peer)}: forged or damaged"
        ) from None


def from_seed(seed: bytes) -> Identity:
    """The identity of 32 secret bytes; `swarm/peer/keys.py` takes them from the operating system, tests from a constant."""
    assert len(seed) == PUBLIC_KEY_BYTES
    return Identity(Ed25519PrivateKey.from_private_bytes(seed))
