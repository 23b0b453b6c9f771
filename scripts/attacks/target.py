"""What an attacker knows.

That is the addresses that nodes print, and what their directory says of the model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protocols.errors import PeerUnreachableError, SwarmError
from protocols.hosted import Hosted
from protocols.ids import PeerId, SessionId, Span
from protocols.inference import Grant, Hop
from protocols.records import PeerRecord
from protocols.units import Blocks
from protocols.weights_id import Weights
from swarm.dht.address import PeerAddress
from swarm.peer.thin_peer import ThinPeer
from swarm.routing.offers import named
from swarm.rpc.stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One swarm and one of its models."""

    addresses: tuple[str, ...]
    """Multiaddrs of its honest nodes."""
    model: str
    num_blocks: int
    checkpoint: Path
    """The attackers hold the weights too: any peer can fetch them."""
    on_attack: Callable[[], None]
    """To be called when the attack is in place; what is measured begins then."""
    swarm: str = "public"
    arrived: Counter[str] = field(default_factory=Counter)
    """What nodes have taken, refused or asked of the attacker, by kind: an attack of which nothing arrives is none."""

    @property
    def places(self) -> list[PeerAddress]:
        return [PeerAddress.parse(address) for address in self.addresses]


@dataclass(frozen=True, slots=True)
class UntrustedPeer:
    """A fresh identity with connections, and what the directory told it."""

    peer: ThinPeer
    nodes: tuple[tuple[PeerRecord, Hosted], ...]

    @property
    def weights(self) -> Weights:
        return self.nodes[0][1].weights

    def hop(self, number: int) -> Hop:
        """Node number `number` as a hop of a route."""
        record, served = self.nodes[number]
        return Hop(record.peer, record.addresses, record.certificate, Blocks.of(served.span))

    def grant(self, route: list[Hop], session: bytes, epoch: int = 0) -> Grant:
        """The client's own word for a route: any client may give it."""
        grant = Grant(
            client=self.peer.peer_id,
            session=SessionId(session),
            epoch=epoch,
            weights=self.weights,
            route=tuple(route),
            expires_s=time.time() + 600,
        )
        return grant.signed(self.peer.identity.sign)


async def untrusted_peer(target: Target) -> UntrustedPeer:
    """A new identity that has met the swarm; its connections end with the process."""
    peer = ThinPeer(target.addresses, target.swarm)
    await peer.__aenter__()
    honest = {place.peer for place in target.places}
    offers = named((await peer.directory.snapshot(target.model)).peers, target.model)
    return UntrustedPeer(peer, tuple((one.record, one.hosted) for one in offers if one.record.peer in honest))


async def listen(target: Target, stream: Stream) -> None:
    """Count what a node says on a stream, or that it refuses it; ends with the stream."""
    try:
        while await stream.receive() is not None:
            target.arrived["words"] += 1
    except PeerUnreachableError:
        return
    except SwarmError:
        target.arrived["refusals"] += 1


def absent(peer: PeerId, addresses: tuple[str, ...], span: Span) -> Hop:
    """A hop at silent addresses."""
    return Hop(peer, addresses, b"", Blocks.of(span))
