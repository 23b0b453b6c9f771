"""The routing table is bounded and takes no false node ids."""

from __future__ import annotations

import asyncio
import random

from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.p2p import PeerID

from swarm.clock import SYSTEM, Clock
from swarm.dht.neighbourhood import _ODD, BUCKET_SIZE, DEPTH_MODULO, PING_AGAIN_S, SILENT_S, Neighbourhood


class Quiet(Neighbourhood):
    """It asks no peer."""

    async def _ping(self, peer: PeerID) -> None:
        pass


def neighbourhood(rng: random.Random) -> Quiet:
    made = Quiet(_initialized_with_create=True)
    made.node_id, made.peer_id = DHTID(rng.getrandbits(160)), PeerID(rng.randbytes(34))
    made.routing_table = RoutingTable(made.node_id, BUCKET_SIZE, DEPTH_MODULO)
    made._silent, made._pinged, made._tasks, made.clock = {}, {}, set(), SYSTEM
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


async def test_a_member_that_answers_only_the_question_whether_it_is_back_is_asked_that_once() -> None:
    """It calls all the time, and each time it is taken back, a look waits for it."""
    rng, now = random.Random(12), [0.0]
    made = neighbourhood(rng)
    made.clock = Clock(now_s=lambda: now[0])
    liar, node_id = PeerID(rng.randbytes(34)), DHTID(rng.getrandbits(160))
    is_back, num_asked = False, 0

    async def call_ping(peer: PeerID) -> DHTID | None:
        nonlocal num_asked
        num_asked += 1
        return node_id if is_back else None

    made.call_ping = call_ping

    async def calls() -> bool:
        await made.update_routing_table(node_id, liar)
        await asyncio.gather(*made._tasks)
        return not made.is_silent(liar)

    made.leave_alone(liar)
    assert not await calls() and not await calls() and num_asked == 1
    now[0], is_back = PING_AGAIN_S, True
    assert await calls() and num_asked == 2
    made.leave_alone(liar)
    now[0] += SILENT_S - 1.0
    assert not await calls() and num_asked == 2
