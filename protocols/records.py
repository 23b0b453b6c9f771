"""A record: what one peer announces about itself.

Signed, expiring, the newest counts; small enough for a DHT that keeps thousands.

The form is a msgpack map under short keys, so that a newer peer may add some: `v` is the layout's version, peers travel as
their 32-byte public key, milliseconds as hundredths (what `encode` keeps of them). `w` lists the weights, each once, and `b` the
units (`protocols/hosted.py`), which name their weights by the place in that list; `g` the roles in training runs (`protocols/roles.py`).
`signed_bytes` is what the announcer signs and every storing peer checks (`swarm/dht`): it covers the expiry, so no replay lives
longer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from protocols import bounds, fields, frame, roles
from protocols.defaults import MAX_RECORD_BYTES, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from protocols.errors import BadRequestError, ProtocolVersionError, shown
from protocols.hosted import MAX_COUNT, MAX_HUNDREDTHS, STATES, Hosted, hundredths
from protocols.ids import MAX_MODEL_NAME, PeerId, peer_id_of, public_bytes
from protocols.roles import Role
from protocols.units import Unit
from protocols.weights_id import MAX_WEIGHTS_TEXT, Weights

VERSION: Final = 2
BUCKETS: Final = 8
"""Keys over which the peers of one model spread: a DHT dictionary is one message, and should stay well below 2 MB."""

MAX_HOSTED: Final = 16
MAX_WEIGHTS: Final = 8
"""Weights that the units of one record are of."""

MAX_MODELS: Final = 4
"""Models of one record: more, with embedding and head of each and a certificate, do not fit MAX_RECORD_BYTES."""

MAX_ADDRESSES: Final = 8
MAX_ROUND_TRIPS: Final = 8
MAX_NAME: Final = 64
MAX_CERTIFICATE_BYTES: Final = 1_024
_GIVEN_UP: Final = (("round_trips", 0), ("p2p_addresses", 1), ("addresses", 1), ("p2p_addresses", 0))
"""What a record that is too long loses first, and how many are kept of each."""

_CONTEXT = b"murmuration-record/2\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """One peer, as it describes itself. The signature proves `peer` only; the rest is a claim that dialling it has to confirm."""

    peer: PeerId
    name: str = ""
    software: str = ""
    protocol: tuple[int, int] = (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION)
    """Oldest and newest protocol version that it speaks."""
    state: str = "serving"
    """`joining`, `serving` or `draining`."""
    addresses: tuple[str, ...] = ()
    """gRPC addresses, `host:port`, in the order to try."""
    certificate: bytes = b""
    """DER of its TLS certificate; empty = fetch it and check its owner."""
    p2p_addresses: tuple[str, ...] = ()
    """Multiaddrs of its p2pd; a trailing `/p2p/<peer>` takes no bytes."""
    reachable: bool | None = None
    """Has another peer dialled it back? None = no peer has tried."""
    hosted: tuple[Hosted, ...] = ()
    """Its units, each with its load."""
    upload_bytes_s: int = 0
    """Cap of its uplink; 0 = none known."""
    round_trips: tuple[tuple[PeerId, float], ...] = ()
    """Measured milliseconds to peers of neighbouring blocks, the most useful first."""
    also: tuple[str, ...] = ()
    """Names of models under which it is announced without a unit of them: after a move, or before the first unit."""
    roles: tuple[Role, ...] = ()
    """What it does in training runs."""
    paused: bool = False
    """Its operator lets no new sessions begin: for people; its units say `draining`, which every router knows."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the models under which this record may stand."""
        hosted = (one.weights.model.name for one in self.hosted)
        return frozenset((*self.also, *hosted, *(role.model.name for role in self.roles)))

    def roles_of(self, digest: str) -> tuple[Role, ...]:
        """What it does in one run."""
        return tuple(role for role in self.roles if role.model.digest == digest)

    def hosted_of(self, digest: str) -> tuple[Hosted, ...]:
        """Its units of one model, whatever their version and state."""
        return tuple(one for one in self.hosted if one.weights.model.digest == digest)

    def blocks(self, weights: Weights | None = None) -> tuple[Hosted, ...]:
        """The blocks that a route may lead over, whatever their state. weights: of exactly these only."""
        return tuple(one for one in self.hosted if one.is_blocks and weights in (None, one.weights))

    def beside(self, hosted: Hosted) -> frozenset[Unit]:
        """Which units it hosts beside one of its own: of the same weights, in the same precision and state."""
        return frozenset(
            one.unit
            for one in self.hosted
            if one.unit != hosted.unit
            and (one.weights, one.precision, self.state_of(one)) == (hosted.weights, hosted.precision, self.state_of(hosted))
        )

    def state_of(self, hosted: Hosted) -> str:
        """A unit's state; of a peer that leaves, every unit is draining."""
        return self.state if self.state == "draining" else hosted.state or self.state

    def encode(self) -> bytes:
        """The bytes to sign and store; BadRequestError where they pass 1.5 KiB or `parse` would refuse them."""
        data = self._pack()
        if len(data) > MAX_RECORD_BYTES:
            raise BadRequestError(
                f"a record has at most {MAX_RECORD_BYTES} bytes, got {len(data)}: announce fewer addresses, units or round trips"
            )
        PeerRecord.parse(data)
        return data

    def fitted(self) -> PeerRecord:
        """The same with as many round trips and addresses as fit, in the order of `_GIVEN_UP`."""
        record = self
        for field, kept in _GIVEN_UP:
            while len(record._pack()) > MAX_RECORD_BYTES and len(getattr(record, field)) > kept:
                record = replace(record, **{field: getattr(record, field)[:-1]})
        return record

    def _pack(self) -> bytes:
        own = f"/p2p/{self.peer}"
        p2p = [text.removesuffix(self.peer) if text.endswith(own) else text for text in self.p2p_addresses]
        trips = [[public_bytes(peer), hundredths(ms)] for peer, ms in self.round_trips]
        weights = list(dict.fromkeys(one.weights for one in self.hosted))
        table = {"v": VERSION, "k": public_bytes(self.peer), "n": self.name, "s": self.software, "p": list(self.protocol),
                   "t": self.state, "a": list(self.addresses), "c": self.certificate, "m": p2p, "r": self.reachable,
                   "w": list(map(str, weights)), "b": [one.pack(weights) for one in self.hosted],
                   "u": self.upload_bytes_s, "d": trips}  # fmt: skip
        table |= {"o": list(self.also)} if self.also else {}
        table |= {"g": roles.pack(self.roles)} if self.roles else {}
        table |= {"z": True} if self.paused else {}
        packed: bytes = msgpack.packb(table)
        return packed

    @classmethod
    def parse(cls, data: bytes) -> PeerRecord:
        """What a peer announced; BadRequestError out of bounds, ProtocolVersionError for another layout.

        A unit or a role of a kind that is unknown here is left out.
        """
        header = frame.unpack_map(data, bounds.RECORD)
        version = fields.integer(header, "v", 1, 1 << 16)
        if version != VERSION:
            who = "its peer" if version < VERSION else "this peer"
            raise ProtocolVersionError(f"a record of layout {version}, expected {VERSION}: {who} must upgrade")
        peer = _peer(fields.raw(header, "k", 32))
        weights = [Weights.parse(text) for text in fields.texts(header, "w", MAX_WEIGHTS, MAX_WEIGHTS_TEXT)]
        hosted = [Hosted.parse(one, weights) for one in fields.array(header, "b", MAX_HOSTED)]
        oldest = fields.integer(_pair(header), "oldest", 0, 1 << 16)
        return cls(
            peer=peer,
            name=fields.text(header, "n", MAX_NAME),
            software=fields.text(header, "s", MAX_NAME),
            protocol=(oldest, fields.integer(_pair(header), "newest", oldest, 1 << 16)),
            state=fields.one_of(header, "t", STATES),
            addresses=fields.addresses(header, "a", MAX_ADDRESSES),
            certificate=fields.raw(header, "c", MAX_CERTIFICATE_BYTES),
            p2p_addresses=tuple(
                text + peer if text.endswith("/p2p/") else text for text in fields.texts(header, "m", MAX_ADDRESSES, 300)
            ),
            reachable=None if header.get("r") is None else fields.flag(header, "r"),
            hosted=tuple(one for one in hosted if one is not None),
            upload_bytes_s=fields.integer(header, "u", 0, MAX_COUNT),
            round_trips=tuple(_round_trip(pair) for pair in fields.array(header, "d", MAX_ROUND_TRIPS)),
            also=fields.texts({"o": [], **header}, "o", MAX_MODELS, MAX_MODEL_NAME),
            roles=roles.parse({"g": [], **header}, "g"),
            paused=fields.flag({"z": False, **header}, "z"),
        )


def _peer(public: bytes) -> PeerId:
    if len(public) != 32:
        raise BadRequestError(f"a peer's public key has 32 bytes, got {len(public)}")
    return peer_id_of(public)


def _pair(header: fields.Header) -> dict[str, Any]:
    return dict(zip(("oldest", "newest"), fields.array(header, "p", 2), strict=False))


def _round_trip(pair: object) -> tuple[PeerId, float]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise BadRequestError(f"a round trip is [public key, hundredths of a millisecond], got {shown(pair)}")
    table = {"key": pair[0], "ms": pair[1]}
    return _peer(fields.raw(table, "key", 32)), fields.integer(table, "ms", 0, MAX_HUNDREDTHS) / 100


def signed_bytes(key: bytes, subkey: bytes, payload: bytes, expires_s: float) -> bytes:
    """What the announcer signs: the payload together with where and until when (Unix time) it may be stored."""
    return _CONTEXT + hashlib.sha256(msgpack.packb([key, subkey, payload, float(expires_s)])).digest()


def bucket(peer: PeerId) -> int:
    """Which of a model's 8 keys a peer announces under."""
    return hashlib.sha256(public_bytes(peer)).digest()[0] % BUCKETS
