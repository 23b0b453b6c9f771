"""mDNS: announces this peer's p2pd, and hears of others.

By the two halves of py-libp2p's discovery, its broadcaster and its listener, with our own addresses: a whole py-libp2p host would
listen on a port of its own. Both run in zeroconf's threads. py-libp2p is an extra; it is imported (0.5 s, 50 MB) by `load`, and what
it needs of protobuf is kept apart from hivemind's, which defines the same names.

Any machine on the network can announce anything: an announcement is an address to try, no more. `swarm.peer.peer` asks there for the
PeerID's proof and the swarm's name before it joins.
Source: https://github.com/libp2p/specs/blob/master/discovery/mdns.md; our service has its own name, since other programs of
libp2p have no use for us.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from protocols.errors import ConfigError
from protocols.ids import PeerId
from swarm.dht.address import PeerAddress
from swarm.lan import network

log = logging.getLogger(__name__)

SERVICE = "_p2p-murmuration._udp.local."
HOW_TO_INSTALL = "in the checkout, run scripts/setup, or pip install '.[lan]'"
MAX_ADDRESSES = 8
MAX_HEARD = 256
"""Addresses that are remembered so as not to be reported again; beyond, the oldest is forgotten."""

_own_pool: Any = None


def is_installed() -> bool:
    """Is the extra there? Looks without importing it."""
    return all(importlib.util.find_spec(name) is not None for name in ("libp2p", "zeroconf"))


class Mdns:
    """One peer on the local network, from `refresh` to `stop`; both block for up to a second or two, so call them in a thread."""

    def __init__(
        self, me: PeerId, announced: Callable[[], Sequence[str]], on_heard: Callable[[PeerAddress], None] | None
    ) -> None:
        """announced: multiaddrs to announce, without `/p2p/`, as they are now; none = only look.
        on_heard: called in another thread; None = do not look."""
        self._me, self._announced, self._on_heard = me, announced, on_heard
        self._at: tuple[frozenset[str], frozenset[str]] | None = None
        """This machine's addresses, and what we announce, since we started last; None = we have not."""
        self._heard: dict[PeerAddress, None] = {}
        self._zeroconf: Any = None
        self._broadcaster: Any = None
        self._listener: Any = None

    def refresh(self) -> None:
        """Announce and look, until `stop`. Later calls begin anew if addresses of this machine or ours have changed.

        OSError if there is no network now: then we do neither, and a later call tries again.
        """
        ours = list(self._announced())[:MAX_ADDRESSES]
        at = network.addresses(), frozenset(ours)
        if at == self._at:
            return
        self.stop()
        if not at[0]:
            raise OSError("this machine has no IPv4 address that others could reach")
        self._start(ours)
        self._at = at

    def _start(self, addresses: list[str]) -> None:
        import zeroconf

        try:
            self._zeroconf = zeroconf.Zeroconf()
        except (RuntimeError, zeroconf.Error) as error:  # the network has gone meanwhile
            raise OSError(f"zeroconf does not start: {error}") from None
        name = f"{secrets.token_hex(16)}.{SERVICE}"  # a restart is a new service, so that neighbours hear of it
        if self._on_heard is not None:
            self._listen(name)
        if addresses:
            self._announce(name, addresses)

    def _announce(self, name: str, addresses: list[str]) -> None:
        from libp2p.discovery.mdns.broadcaster import PeerBroadcaster

        self._broadcaster = PeerBroadcaster(self._zeroconf, SERVICE, name, self._me, _port(addresses), addresses)
        self._broadcaster.register()

    def _listen(self, own_name: str) -> None:
        from libp2p.discovery.events.peerDiscovery import peerDiscovery
        from libp2p.discovery.mdns.listener import PeerListener
        from libp2p.peer.peerstore import PeerStore

        peerDiscovery.register_peer_discovered_handler(self._hear)
        self._listener = PeerListener(PeerStore(), self._zeroconf, SERVICE, own_name, retry_attempts=1)

    def _hear(self, info: Any) -> None:
        """Runs in a thread of zeroconf. Left out: what is no address of a p2pd, and what is announced under our own PeerID."""
        for transport in list(info.addrs)[:MAX_ADDRESSES]:
            with contextlib.suppress(ConfigError):
                address = PeerAddress.parse(f"{transport}/p2p/{info.peer_id}")
                if address.peer == self._me or address in self._heard:
                    continue
                self._heard[address] = None
                while len(self._heard) > MAX_HEARD:
                    del self._heard[next(iter(self._heard))]
                assert self._on_heard is not None
                self._on_heard(address)

    def stop(self) -> None:
        """Say good-bye and end the threads; again is harmless."""
        broadcaster, listener, zeroconf = self._broadcaster, self._listener, self._zeroconf
        self._broadcaster = self._listener = self._zeroconf = self._at = None
        if listener is not None:
            from libp2p.discovery.events.peerDiscovery import peerDiscovery

            peerDiscovery.unregister_peer_discovered_handler(self._hear)
            listener.stop()
        if broadcaster is not None:
            broadcaster.unregister()
        if zeroconf is not None:
            zeroconf.close()


def load() -> None:
    """Import what `Mdns` needs; in the thread that imports everything else. Again is harmless."""
    with _apart():
        for name in ("libp2p.discovery.mdns.broadcaster", "libp2p.discovery.mdns.listener", "libp2p.peer.peerstore"):
            importlib.import_module(name)
    for quiet in ("libp2p", "zeroconf"):
        logging.getLogger(quiet).setLevel(logging.ERROR)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """While it lasts, py-libp2p's messages are registered in a pool of their own: it and hivemind both define `crypto.pb.KeyType`,
    and protobuf refuses the second (research/transport.md, section 7, cures this for one order of imports only)."""
    from google.protobuf import descriptor_pool

    global _own_pool
    _own_pool = _own_pool or descriptor_pool.DescriptorPool()
    usual, own = descriptor_pool.Default, _own_pool

    def default() -> Any:
        return own if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("libp2p.") else usual()

    descriptor_pool.Default = default  # type: ignore[assignment, unused-ignore]
    try:
        yield
    finally:
        descriptor_pool.Default = usual


def _port(addresses: Sequence[str]) -> int:
    return int(addresses[0].rpartition("/tcp/")[2])
