"""The asking half of a peer: identity, connections, hellos.

A full peer (`peer.py`) and a thin one (`thin_peer.py`) have it in common. Sessions need no more of a peer than this and its directory.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.hello import Hello
from protocols.identity import Identity
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm import log_ids
from swarm.dht.address import PeerAddress, beside
from swarm.meeting import hello
from swarm.meeting.bootstrap import Finder
from swarm.meeting.clocks import Clocks
from swarm.meeting.entering import Entry
from swarm.peer.acquaintances import Acquaintances
from swarm.rpc.pool import ChannelPool

_MAX_ROUND_TRIPS = 64


class Greeter:
    """Asks other peers who they are, and remembers who answered, how fast, and what time it is there."""

    identity: Identity
    peer_id: PeerId
    pool: ChannelPool
    finder: Finder

    def __init__(self, mine: Hello, entry: Entry) -> None:
        """mine: what we say of ourselves. `start_asking` comes next."""
        self._mine = mine
        self.gate = entry.gate()
        """Who may do what with us; `renew` changes it while we run."""
        self.met = Acquaintances()
        """Peers that have answered us: by a hello, or when we dialled them back."""
        self.clocks = Clocks()
        """Is this machine's clock right? What the peers that were asked say."""
        self._had_fault = False
        self.round_trips_ms: dict[PeerId, float] = {}
        """Measured by hello, newest last."""

    def start_asking(self, identity: Identity, finder: Finder) -> None:
        """Who we are, and who finds other peers for us."""
        self.identity, self.peer_id, self.finder = identity, identity.peer_id, finder
        self.pool = ChannelPool(identity, self.gate)
        log_ids.peer_is(self.peer_id)

    async def hello(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> Hello:
        """Ask a peer who it is, and measure the round trip. Raises where it is of another swarm or speaks no common version."""
        channel = await self.pool.channel(peer, addresses, certificate)
        theirs, round_trip_ms = await hello.ask(channel, self._mine, self.clocks)
        self._look_at_clock()
        self.round_trips_ms.pop(peer, None)
        self.round_trips_ms[peer] = round_trip_ms
        while len(self.round_trips_ms) > _MAX_ROUND_TRIPS:
            del self.round_trips_ms[next(iter(self.round_trips_ms))]
        self.met.note(peer, channel.address)
        place = beside(channel.address, peer)
        self.finder.note_answering([place] if place else [])
        return theirs

    async def ping(self, record: PeerRecord) -> float:
        """Say hello; its round trip in milliseconds, without the time to connect. The errors of `hello`."""
        await self.hello(record.peer, record.addresses, record.certificate)
        return self.round_trips_ms[record.peer]

    async def prove(self, address: PeerAddress) -> None:
        """A peer that our user did not name must prove its PeerID, and be in our swarm, before we use it. The errors of `hello`."""
        await hello.prove(self.identity, self.gate, address, self._mine, self.clocks)
        self._look_at_clock()

    def has_met(self, peer: PeerId) -> bool:
        """Has it answered us, or does our user trust it?"""
        return peer in self.met or self.gate.access.is_trusted(peer)

    def _look_at_clock(self) -> None:
        """Tell the user once when a fault of this machine's clock shows."""
        fault = self.clocks.fault
        if fault and not self._had_fault:
            self.finder.say(fault)
        self._had_fault = bool(fault)
