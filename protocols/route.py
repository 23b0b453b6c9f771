"""A session's route, and the grant that the client signs.

By the grant, hops accept steps from peers that they do not know.

The client decides; a hop reads its successor's addresses, PeerID and certificate here, and never chooses a peer itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import msgpack

from protocols import fields
from protocols.defaults import MAX_HOPS
from protocols.errors import BadRequestError
from protocols.ids import PeerId, SessionId, Span, parse_peer_id, parse_session_id
from protocols.units import Blocks, parse_blocks
from protocols.weights_id import Weights

MAX_EPOCH = 1 << 20


@dataclass(frozen=True, slots=True)
class Hop:
    """One node's part of a route: who, where, which certificate, and the blocks that it runs for this session."""

    peer: PeerId
    addresses: tuple[str, ...]
    """gRPC addresses, `host:port`, in the order to try."""
    certificate: bytes
    """DER of the TLS certificate to pin; empty = fetch it and check its owner."""
    unit: Blocks

    @property
    def span(self) -> Span:
        """The numbers of its blocks."""
        return self.unit.span

    @property
    def place(self) -> tuple[PeerId, Span]:
        """Who and what, wherever it can be reached."""
        return self.peer, self.span

    def pack(self) -> dict[str, object]:
        """The map that travels. A newer peer may add keys: they are ignored, and the client's signature does not cover them."""
        return dict(zip("pacu", self.signed_fields(), strict=True))

    def signed_fields(self) -> list[object]:
        """What the client's signature covers, in this order."""
        return [self.peer, list(self.addresses), self.certificate, str(self.unit)]

    @classmethod
    def parse(cls, value: object) -> Hop:
        """BadRequestError if a field is missing or out of its bounds, or if the unit is anything but blocks."""
        table = fields.table(value, "hop")
        addresses, certificate = fields.addresses(table, "a", 8), fields.raw(table, "c", 4_096)
        return cls(parse_peer_id(table.get("p")), addresses, certificate, parse_blocks(table.get("u")))


Route = tuple[Hop, ...]


def parse_route(value: object) -> Route:
    """1 to 128 hops whose blocks are of one stack and follow each other without gap or overlap."""
    hops = tuple(Hop.parse(item) for item in fields.array({"route": value}, "route", MAX_HOPS))
    if not hops or any((a.unit.stack, a.unit.stop) != (b.unit.stack, b.unit.start) for a, b in pairwise(hops)):
        raise BadRequestError(f"the blocks of a route must follow each other, got {[str(hop.unit) for hop in hops]}")
    return hops


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The client's signed word that this session, in this epoch, may run over this route. Quotas go by its `client`."""

    client: PeerId
    session: SessionId
    epoch: int
    weights: Weights
    """Which numbers every hop must compute with."""
    route: Route
    expires_s: float
    """Unix time."""
    signature: bytes = b""

    CONTEXT: ClassVar[bytes] = b"murmuration-grant/2\0"

    def signed_bytes(self) -> bytes:
        """What the client signs: a hash, so that hops check one signature whatever the route's length."""
        route = [hop.signed_fields() for hop in self.route]
        body = [self.client, self.session, self.epoch, str(self.weights), route, float(self.expires_s)]
        return self.CONTEXT + hashlib.sha256(msgpack.packb(body)).digest()

    def signed(self, sign: Callable[[bytes], bytes]) -> Grant:
        return replace(self, signature=sign(self.signed_bytes()))

    def pack(self) -> dict[str, object]:
        route = [hop.pack() for hop in self.route]
        return {"client": self.client, "session": self.session, "epoch": self.epoch, "weights": str(self.weights),
                "route": route, "expires": float(self.expires_s), "signature": self.signature}  # fmt: skip

    @classmethod
    def parse(cls, value: object) -> Grant:
        """Checked for form only; the peer that acts on it verifies signature, expiry and its own place in the route."""
        table = fields.table(value, "grant")
        return cls(
            client=parse_peer_id(table.get("client")),
            session=parse_session_id(table.get("session")),
            epoch=fields.integer(table, "epoch", 0, MAX_EPOCH),
            weights=Weights.parse(table.get("weights")),
            route=parse_route(table.get("route")),
            expires_s=fields.number(table, "expires", 0, 1e12),
            signature=fields.raw(table, "signature", 64),
        )
