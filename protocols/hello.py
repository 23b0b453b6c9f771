"""Hello: agrees on a protocol version; asks for a dial-back.

A version is a number for everything that peers say. Each side names the oldest and newest that it speaks; the newest common
one holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import fields, frame
from protocols.defaults import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocols.errors import BadRequestError, ProtocolVersionError

MAX_VERSION = 1 << 16
MAX_NAME = 64
MAX_ADDRESSES = 8
MAX_CERTIFICATE_BYTES = 4_096
MAX_REASON = 300
MAX_TIME_S = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Both ways: which versions I speak, and which swarm I am in."""

    oldest: int = OLDEST_PROTOCOL_VERSION
    newest: int = PROTOCOL_VERSION
    software: str
    """Name and version for people, e.g. `murmuration 0.1.0`; decides nothing."""
    swarm: str
    name: str = ""
    """What the volunteer calls this machine; may be empty."""
    time_s: float = 0.0
    """My clock, Unix time in seconds, so that a wrong one is noticed; 0 = not said, as by peers of version 0.1."""

    def encode(self) -> bytes:
        time = {"time": float(self.time_s)} if self.time_s else {}
        return frame.encode({"t": "hello", "oldest": self.oldest, "newest": self.newest,
                             "software": self.software, "swarm": self.swarm, "name": self.name, **time})  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Hello:
        header = frame.decode_kind(data, "hello").header
        oldest = fields.integer(header, "oldest", 0, MAX_VERSION)
        return cls(
            oldest=oldest,
            newest=fields.integer(header, "newest", oldest, MAX_VERSION),
            software=fields.text(header, "software", MAX_NAME),
            swarm=fields.text(header, "swarm", MAX_NAME),
            name=fields.text(header, "name", MAX_NAME),
            time_s=fields.number(header, "time", 0, MAX_TIME_S) if "time" in header else 0.0,
        )


def agree(mine: Hello, theirs: Hello) -> int:
    """The newest version that both speak; ProtocolVersionError names the side that has to upgrade."""
    version = min(mine.newest, theirs.newest)
    if version >= max(mine.oldest, theirs.oldest):
        return version
    who = "we" if mine.newest < theirs.newest else "they"
    raise ProtocolVersionError(
        f"no common protocol version: we ({mine.software}) speak {mine.oldest} to {mine.newest}, "
        f"they ({theirs.software}) speak {theirs.oldest} to {theirs.newest}; {who} must upgrade"
    )


def check_swarm(mine: Hello, theirs: Hello) -> None:
    """BadRequestError if the other peer is in another swarm."""
    if mine.swarm != theirs.swarm:
        raise BadRequestError(
            f"the two peers are in different swarms, {theirs.swarm!r} and {mine.swarm!r}; "
            "join by a peer of your own swarm, or name the other one with --swarm"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DialBack:
    """Please dial me at these addresses: can others reach me? The answerer decides which of them it is willing to dial."""

    addresses: tuple[str, ...]
    """gRPC addresses, `host:port`."""
    certificate: bytes = b""
    """DER of the certificate that the asker serves; empty = fetch it and check its owner."""

    def encode(self) -> bytes:
        return frame.encode({"t": "dial_back", "addresses": list(self.addresses), "certificate": self.certificate})

    @classmethod
    def parse(cls, data: bytes) -> DialBack:
        header = frame.decode_kind(data, "dial_back").header
        return cls(
            addresses=fields.addresses(header, "addresses", MAX_ADDRESSES),
            certificate=fields.raw(header, "certificate", MAX_CERTIFICATE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DialBackReply:
    """The addresses at which the asker itself answered, and why the others failed (one line; empty if none did)."""

    reachable: tuple[str, ...]
    reason: str = ""

    def encode(self) -> bytes:
        return frame.encode({"t": "dialled_back", "reachable": list(self.reachable), "reason": self.reason[:MAX_REASON]})

    @classmethod
    def parse(cls, data: bytes) -> DialBackReply:
        header = frame.decode_kind(data, "dialled_back").header
        return cls(
            reachable=fields.addresses(header, "reachable", MAX_ADDRESSES),
            reason=fields.text(header, "reason", MAX_REASON),
        )
