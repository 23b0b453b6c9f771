"""Where members of a private swarm listen, as they tell each other.

hivemind's answers name peers without addresses: p2pd looks these up in a second DHT, that of go-libp2p, which answers any peer. In a
private swarm that one is off, and addresses travel in fields of the authorisation that hivemind's messages have for it: members send
them to members only. What is told of a third peer is a place to try: p2pd checks there who answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from protocols.errors import BadRequestError, ConfigError
from protocols.ids import PeerId, parse_peer_id
from swarm.dht.address import PeerAddress

MAX_PEERS = 2_000
MAX_ADDRESSES = 4
"""Of one peer."""

_MAX_TOLD = 64
"""Peers in one message; an answer of the DHT names 20 a key."""
_MAX_BYTES = 32 << 10


class Whereabouts:
    """Transports (`/ip4/…/tcp/…`) by peer; beyond `max_peers` the oldest entries are forgotten."""

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._most = max_peers
        self._known: dict[PeerId, tuple[str, ...]] = {}

    def __getitem__(self, peer: PeerId) -> tuple[str, ...]:
        return self._known.get(peer, ())

    def learn(self, teller: PeerId, data: bytes) -> None:
        """What `teller` told: its own word about itself replaces what others said. What is malformed is left out."""
        for peer, addresses in _parsed(data):
            if peer == teller or peer not in self._known:
                self._known.pop(peer, None)
                self._known[peer] = addresses
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]

    def tell(self, me: PeerId, mine: Sequence[str], others: Iterable[PeerId] = ()) -> bytes:
        """Where we listen, and where the others do as far as we know and _MAX_BYTES allow."""
        places = {me: tuple(mine)[:MAX_ADDRESSES], **{peer: self[peer] for peer in list(others)[:_MAX_TOLD] if peer != me}}
        told, num_bytes = list[str](), 2
        for peer, addresses in places.items():
            entry = f"{json.dumps(peer)}:{json.dumps(addresses, separators=(',', ':'))}"
            num_bytes += len(entry.encode()) + 1
            if num_bytes > _MAX_BYTES:
                break
            told += [entry] if addresses else []
        return f"{{{','.join(told)}}}".encode()


def _parsed(data: bytes) -> list[tuple[PeerId, tuple[str, ...]]]:
    if not data or len(data) > _MAX_BYTES:
        return []
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return []
    found = []
    for peer, addresses in list(told.items())[: _MAX_TOLD + 1] if isinstance(told, dict) else []:
        try:
            name = parse_peer_id(peer)
            places = [PeerAddress.parse(f"{one}/p2p/{name}").transport for one in addresses[:MAX_ADDRESSES]]
        except (BadRequestError, ConfigError, TypeError, KeyError):
            continue
        if places:
            found.append((name, tuple(places)))
    return found
