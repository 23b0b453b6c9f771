"""The routing table is bounded and takes no false node ids."""

from __future__ import annotations

import random

from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.p2p import PeerID

from swarm.clock import SYSTEM
from swarm.dht.neighbourhood import _ODD, BUCKET_SIZE, DEPTH_MODULO, Neighbourhood


class Quiet(Neighbourhood):
    """It asks no peer."""

    async def _ping(self, peer: PeerID) -> None:
        pass


def neighbourhood(rng: random.Random) -> Quiet:
    made = Quiet(_initialized_with_create=True)
    made.node_id, made.peer_id = DHTID(rng.getrandbits(160)), PeerID(rng.randbytes(34))
    made.routing_table = RoutingTable(made.node_id, BUCKET_SIZE, DEPTH_MODULO)
    made._silent, made._tasks, made.clock = {}, set(), SYSTEM
    return made


async def test_of_thousands_that_call_a_bucketful_is_remembered_beside_each_full_bucket() -> None:
    rng = random.Random(12)
    made = neighbourhood(rng)
    for _ in range(3_000):
        await made.update_routing_table(DHTID(rng.getrandbits(160)), PeerID(rng.randbytes(34)))
    buckets = made.routing_table.buckets
    assert any(bucket.replacement_nodes for bucket in buckets), "no bucket was full: nothing was shown"
    assert max(len(bucket.replacement_nodes) for bucket in buckets) <= BUCKET_SIZE
    assert len(made.routing_table.uid_to_peer_id) <= 2 * BUCKET_SIZE * len(buckets)


async def test_a_node_id_that_is_exactly_between_two_buckets_is_not_taken() -> None:
    rng = random.Random(12)
    made = neighbourhood(rng)
    for shift in (64, 100, 159):
        await made.update_routing_table(DHTID(1 << shift), PeerID(rng.randbytes(34)))
    assert not made.routing_table.uid_to_peer_id
    await made.update_routing_table(DHTID((1 << 159) + _ODD // 2), PeerID(rng.randbytes(34)))
    assert len(made.routing_table.uid_to_peer_id) == 1
