"""Names of things: peers, sessions, spans, models, addresses.

Parsed once where they come in, trusted after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from protocols.errors import BadRequestError, shown

PeerId = NewType("PeerId", str)
"""An Ed25519 libp2p PeerID in base58 (`12D3KooW…`, 52 letters); it contains the public key."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes, chosen by the client and bound to its PeerID."""

SESSION_ID_BYTES = 16
MAX_BLOCKS = 10_000
MAX_MODEL_NAME = 200
"""Letters of a model's name."""

MAX_MODEL_TEXT = MAX_MODEL_NAME + 65
"""Letters of `name@digest`."""

PUBLIC_KEY_BYTES = 32
MAX_ADDRESS = 280
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PAIRS = tuple(first + second for first in _BASE58 for second in _BASE58)
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
_PEER_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, which are the protobuf PublicKey{type: Ed25519, data: 32 bytes}."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")
_SCHEMES = frozenset(("unix", "unix-abstract", "dns", "ipv4", "ipv6", "vsock", "xds", "google-c2p", "passthrough", "inproc"))
"""Hosts that gRPC would read as a kind of target: `unix:1` is a socket file, not port 1 of a machine named unix."""


def peer_id_of(public: bytes) -> PeerId:
    """The PeerID that stands for 32 bytes of Ed25519 public key."""
    assert len(public) == PUBLIC_KEY_BYTES
    number, letters = int.from_bytes(_PEER_PREFIX + public, "big"), ""
    while number:  # ten letters at once, in pairs: a directory's answer has a thousand of them
        number, rest = divmod(number, 58**10)
        for _ in range(5):
            rest, pair = divmod(rest, 58**2)
            letters = _PAIRS[pair] + letters
    return PeerId("1" + letters.lstrip("1"))  # the prefix begins with one zero byte


def public_bytes(peer: PeerId) -> bytes:
    """The 32 bytes of public key that a PeerID contains; BadRequestError if the text is no PeerID."""
    number = 0
    for letter in parse_peer_id(peer):
        number = number * 58 + _BASE58.index(letter)
    return number.to_bytes(len(_PEER_PREFIX) + PUBLIC_KEY_BYTES, "big")[len(_PEER_PREFIX) :]


_FIRST, _LAST = peer_id_of(bytes(PUBLIC_KEY_BYTES)), peer_id_of(b"\xff" * PUBLIC_KEY_BYTES)


def parse_peer_id(text: object) -> PeerId:
    """Check that `text` is a PeerID of ours; BadRequestError otherwise."""
    # base58's alphabet is in ASCII order, so that comparing texts of one length compares the numbers behind them
    if not isinstance(text, str) or not _PEER.fullmatch(text) or not _FIRST <= text <= _LAST:
        raise BadRequestError(f"not an Ed25519 PeerID: {shown(text)}; expected 52 base58 letters that start with 12D3KooW")
    return PeerId(text)


def parse_address(text: object) -> str:
    """Check that `text` is a gRPC address, `host:port` or `[v6]:port`, and nothing that gRPC reads otherwise (`unix:1`)."""
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_ADDRESS else None
    if match is None or match[1].lower() in _SCHEMES or not 1 <= int(match[3]) <= 65_535:
        raise BadRequestError(f"not an address: {shown(text)}; expected host:port or [v6]:port with a port from 1 to 65535")
    return match[0]


def parse_session_id(data: object) -> SessionId:
    """Check that `data` is 16 bytes; BadRequestError otherwise."""
    if not isinstance(data, bytes) or len(data) != SESSION_ID_BYTES:
        raise BadRequestError(f"a session id is {SESSION_ID_BYTES} bytes, got {shown(data)}")
    return SessionId(data)


def short(session: SessionId) -> str:
    """The eight letters that stand for a session in log lines and errors."""
    return session[:4].hex()


def short_peer(peer: PeerId) -> str:
    """The last six letters of a PeerID: what people compare by eye (the first ones are the same for all peers)."""
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
        match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", text)
        if not match:
            raise BadRequestError(f"a span is written start:stop, as in 0:6, got {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def is_within(self, other: Span) -> bool:
        """Are all of these blocks among the other's?"""
        return other.start <= self.start and self.stop <= other.stop

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.stop


@dataclass(frozen=True, slots=True)
class ModelId:
    """One set of weights: a name that people use, and the digest that decides (64 hex letters)."""

    name: str
    digest: str

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_MODEL_NAME or "@" in self.name or not self.name.isprintable():
            raise BadRequestError(
                f"a model's name is 1 to {MAX_MODEL_NAME} printable letters without '@', got {self.name[:60]!r}"
            )
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
