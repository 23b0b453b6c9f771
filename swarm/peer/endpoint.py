"""Where other peers reach a peer that listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols.ids import PeerId
from swarm.dht.address import PeerAddress, host_port, transport
from swarm.meeting.reachability import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Addresses of one peer's p2pd and gRPC server, and the certificate that the server shows."""

    peer: PeerId

    listen: tuple[str, int] | None
    """Host and port of p2pd, resolved; None = a client, which listens nowhere."""

    announce: tuple[str, int] | None
    """Host and port under which others reach `listen`, where that is another."""

    p2pd_addresses: Callable[[], tuple[str, ...]]
    """Multiaddrs without `/p2p/`, as p2pd says them now."""

    certificate: bytes
    """DER; empty for a client."""

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """What a newcomer passes to `--peer`, the most public first; none for a client."""
        if self.listen is None:
            return ()
        found = [transport(*self.announce)] if self.announce else _best_first(self.p2pd_addresses())
        return tuple(f"{address}/p2p/{self.peer}" for address in found or [transport(*self.listen)])

    @property
    def addresses(self) -> tuple[str, ...]:
        """`host:port` of the gRPC server; none for a client."""
        if self.listen is None:
            return ()
        _, port = self.announce or self.listen
        hosts = dict.fromkeys(PeerAddress.parse(address).host for address in self.multiaddrs)
        return tuple(host_port(host, port + 1) for host in hosts)

    @property
    def place(self) -> Place:
        """For a peer that dials us back."""
        return self.peer, self.addresses, self.certificate


def _best_first(addresses: tuple[str, ...]) -> list[str]:
    """Without loopback if there is anything else: on another machine, a loopback address means that machine."""
    outside = [address for address in addresses if not address.startswith(("/ip4/127.", "/ip6/::1/"))]
    return outside or list(addresses)
