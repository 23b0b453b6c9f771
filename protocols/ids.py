"""Names of things: peers, sessions, spans, models. Parsed once at the edge, trusted after."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from protocols.errors import BadRequestError

PeerId = NewType("PeerId", str)
"""An Ed25519 libp2p PeerID in base58 (`12D3KooW…`, 52 letters); it contains the public key."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes, chosen by the client and bound to its PeerID."""

SESSION_ID_BYTES = 16
MAX_BLOCKS = 10_000
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse_peer_id(text: object) -> PeerId:
    """Check that `text` is a PeerID of ours; BadRequestError otherwise."""
    if not isinstance(text, str) or not _PEER.fullmatch(text):
        raise BadRequestError(f"not an Ed25519 PeerID: {str(text)[:64]!r}; expected 52 base58 letters that start with 12D3KooW")
    return PeerId(text)


def parse_session_id(data: object) -> SessionId:
    """Check that `data` is 16 bytes; BadRequestError otherwise."""
    if not isinstance(data, bytes) or len(data) != SESSION_ID_BYTES:
        raise BadRequestError(f"a session id is {SESSION_ID_BYTES} bytes, got {type(data).__name__} {str(data)[:40]!r}")
    return SessionId(data)


def short(session: SessionId) -> str:
    """The eight letters that stand for a session in log lines and errors."""
    return session[:4].hex()


def short_peer(peer: PeerId) -> str:
    """The last six letters of a PeerID: what people compare by eye (the first ones are the same for everybody)."""
    return "…" + peer[-6:]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Consecutive blocks `[start, stop)` of a model, with 0 <= start < stop <= 10,000."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= MAX_BLOCKS:
            raise BadRequestError(f"a span is start:stop with 0 <= start < stop <= {MAX_BLOCKS}, got {self.start}:{self.stop}")

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `0:6`; BadRequestError for anything else."""
        match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
        if not match:
            raise BadRequestError(f"a span is written start:stop, as in 0:6, got {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.stop


@dataclass(frozen=True, slots=True)
class ModelId:
    """One set of weights: a name that people use, and the digest that decides (64 hex letters)."""

    name: str
    digest: str

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200 or "@" in self.name or not self.name.isprintable():
            raise BadRequestError(f"a model's name is 1 to 200 printable letters without '@', got {self.name[:60]!r}")
        if not _DIGEST.fullmatch(self.digest):
            raise BadRequestError(f"a model's digest is 64 hex letters, got {self.digest[:80]!r}")

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Read `name@digest`; BadRequestError for anything else."""
        name, at, digest = text.rpartition("@")
        if not at:
            raise BadRequestError(f"a model is written name@digest, got {text[:80]!r}")
        return cls(name, digest)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}"
