"""The secret of a private swarm, and its members' proofs.

A proof is an HMAC under a key that is derived for one purpose, so no proof serves two purposes. It is bound to names that the channel
has proved already (a TLS key, a PeerID), so it is of no use on any other channel, and it tells nothing about the secret.
Source: HKDF-Expand of RFC 5869 with one block; Extract is left out, since the secret is 32 uniformly random bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from protocols.errors import ConfigError

KEY_BYTES = 32
PROOF_BYTES = 32
_CONTEXT = b"murmuration-private/1 "


@dataclass(frozen=True, slots=True)
class SwarmKey:
    """32 secret bytes. Its repr and `label` may be shown; `secret` goes into invitations and the key file only."""

    secret: bytes = field(repr=False)

    label: str = field(init=False, compare=False)
    """Eight hex letters that stand for the key in messages and file names; they tell nothing about it."""

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ConfigError(f"the key of a private swarm has {KEY_BYTES} bytes, got {len(self.secret)}")
        object.__setattr__(self, "label", self.proof("label").hex()[:8])

    def proof(self, purpose: str, *parts: bytes) -> bytes:
        """32 bytes that only a holder of the key can make for this purpose and these parts."""
        derived = hmac.digest(self.secret, _CONTEXT + purpose.encode() + b"\x01", hashlib.sha256)
        lengths = b"".join(len(part).to_bytes(4, "big") for part in parts)
        return hmac.digest(derived, len(parts).to_bytes(4, "big") + lengths + b"".join(parts), hashlib.sha256)

    def is_proof(self, proof: bytes, purpose: str, *parts: bytes) -> bool:
        """Was `proof` made with this key for this purpose and these parts? In constant time."""
        return hmac.compare_digest(proof, self.proof(purpose, *parts))
