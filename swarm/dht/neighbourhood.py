"""Which members of the DHT are our neighbours.

hivemind's routing table, and what a hostile member may not do with it.

A PeerID has one node id, and no peer takes another's. A full bucket remembers a bucketful of replacements. A peer that does not answer
is not asked for a while; if it calls us meanwhile, one question, for which no lookup waits, shows whether it answers again.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from swarm import recent
from swarm.clock import Clock

BUCKET_SIZE = 20
DEPTH_MODULO = 5

SILENT_S = 20.0
"""Seconds for which a member that did not answer is not asked again."""

PING_AGAIN_S = 1.0
"""Least time between two such questions to one member; SILENT_S if it has answered: else one that answers nothing but these would delay
every look."""

_MAX_SILENT = 4_096

_ODD = 1 << 64
"""A node id that ends in 64 zero bits is made up: hivemind puts one that is exactly between two buckets into the wrong one."""


class Neighbourhood(DHTProtocol):  # type: ignore[misc]
    """The part of a member that knows others."""

    _silent: dict[PeerID, float]
    """Who did not answer us, and until when it is left alone."""
    _pinged: dict[PeerID, float]
    """Who called us while it was left alone, and until when it is not asked for that reason again."""
    _tasks: set[asyncio.Task[None]]
    clock: Clock

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Note that a peer was heard, or was not. A peer has one node id, and no peer takes another's."""
        table, before = self.routing_table, self.routing_table.get(peer_id=peer_id)
        if not responded:
            if before is not None:
                del table[before]
            return
        node_id = before if node_id is None else node_id
        if node_id is None or node_id == self.node_id or peer_id == self.peer_id or node_id % _ODD == 0:
            return
        if table.get(node_id=node_id, default=peer_id) != peer_id:
            return
        if self.is_silent(peer_id):
            return self._ping_again(peer_id)
        if before is not None and before != node_id:
            del table[before]
        doubted = table.add_or_update_node(node_id, peer_id)
        self._forget_surplus(node_id)
        if doubted is not None:
            self._spawn(self._ping(doubted[1]))

    def _forget_surplus(self, node_id: DHTID) -> None:
        """hivemind keeps every node that a full bucket has no place for; we keep a bucketful."""
        bucket = self.routing_table.buckets[self.routing_table.get_bucket_index(node_id)]
        while len(bucket.replacement_nodes) > BUCKET_SIZE:
            del self.routing_table[next(iter(bucket.replacement_nodes))]

    async def _ping(self, peer: PeerID) -> None:
        await self.call_ping(peer)

    def _ping_again(self, peer: PeerID) -> None:
        """It calls us, so it may have been started again, or its network is back."""
        if self._pinged.get(peer, -math.inf) <= self.clock.now_s():
            self._note(self._pinged, peer, PING_AGAIN_S)
            self._spawn(self._take_back_if_it_answers(peer))

    async def _take_back_if_it_answers(self, peer: PeerID) -> None:
        if (node_id := await self.call_ping(peer)) is not None:
            self._note(self._pinged, peer, SILENT_S)
            self.take_back(peer)
            await self.update_routing_table(node_id, peer)

    def _note(self, book: dict[PeerID, float], peer: PeerID, lasts_s: float) -> None:
        recent.note(book, peer, self.clock.now_s() + lasts_s, _MAX_SILENT)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # an untrusted peer's errors are not logged

    def leave_alone(self, peer: PeerID) -> None:
        """It is no neighbour for SILENT_S, unless it answers before: else one that never answers would delay every look."""
        self._note(self._silent, peer, SILENT_S)
        self._spawn(self.update_routing_table(None, peer, responded=False))

    def take_back(self, peer: PeerID) -> None:
        """It has just answered."""
        self._silent.pop(peer, None)

    def is_silent(self, peer: PeerID) -> bool:
        return bool(self._silent.get(peer, 0.0) > self.clock.now_s())

    async def shutdown(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown()


def node_id_of(raw: bytes) -> DHTID | None:
    """None for a client, or nonsense."""
    return DHTID.from_bytes(raw) if len(raw) == DHTID.HASH_NBYTES else None
