"""Peers that only claim to host blocks draw no node off them.

Hosts, servers, sessions and movers are real, over toy blocks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from node.placement.liveness import AGAIN_S, GREETED_S, GREETING_S, Greeted, Liveness
from node.placement.span_choice import MAX_JOINING_S, Claims, Joining
from node.serving.host import Host, HostEngines
from protocols import services
from protocols.errors import PeerUnreachableError
from protocols.identity import from_seed
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from swarm.asking import AT_ONCE, HELLO_S
from swarm.placement.members import Member
from swarm.rpc import tls
from swarm.rpc.server import RpcServer
from tests.hostile.turns import watched
from tests.hosting import hosted, loaded
from tests.node.placement.test_moving import LocalSwarm, MovingNode, is_next
from tests.swarm.inference.toy import (
    MODEL,
    NUM_BLOCKS,
    ToyEngine,
    ToyNode,
    ToySwarm,
    ask,
    fresh_seed,
    new_identity,
    random_tokens,
    reference,
)
from tests.virtual_time import loop_clock, virtual_time


class Echo(ToyEngine):
    """Answers every step with its input, at once."""

    def step(self, items: Any, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        super().step(items, hidden, positions)
        return hidden.clone()


class Shell:
    """A peer that answers hello and nothing else."""

    swarm_name = "test"

    async def start(self, swarm: LocalSwarm, span: Span) -> None:
        identity = new_identity()
        certificate = tls.make(identity)
        self.server = RpcServer(identity, certificate, {services.HELLO.name: ToyNode._hello.__get__(self)})
        address = f"127.0.0.1:{await self.server.start()}"
        served = hosted(MODEL, span, NUM_BLOCKS, block_ms=0.01)
        swarm.records[identity.peer_id] = PeerRecord(
            peer=identity.peer_id,
            addresses=(address,),
            certificate=certificate.der,
            hosted=served,
        )


@pytest.fixture
async def swarm() -> AsyncIterator[LocalSwarm]:
    fresh_seed()
    swarm = LocalSwarm(ToySwarm())
    swarm.toys.router._shown._directory = swarm
    yield swarm
    await swarm.stop()


async def looks(nodes: list[MovingNode], rounds: int = 3) -> list[bool]:
    return [await node.mover.look() for _ in range(rounds) for node in nodes]


async def answers_exactly(swarm: LocalSwarm, peers: set[PeerId]) -> None:
    session, row = swarm.toys.session(), random_tokens(4)
    answer = await ask(session, (), [4], row)
    assert torch.allclose(answer, torch.stack(reference(list(row), [(0, 2), (2, 4)])), atol=1e-6)
    assert {hop.peer for hop in session.route} <= peers
    await session.close()


async def test_peers_that_only_answer_hello_draw_no_node_off_its_blocks(swarm: LocalSwarm) -> None:
    honest = [await swarm.add(0, 2), await swarm.add(2, 4)]
    shells = [Shell() for _ in range(2)]
    for shell in shells:
        await shell.start(swarm, Span(0, 2))
    assert await is_next(honest[0]), "by claims alone it would move: else nothing is shown"
    assert not any(await looks(honest)) and [node.spans for node in honest] == [["0:2 serving"], ["2:4 serving"]]
    for shell in shells:
        await shell.server.stop(0)
    await answers_exactly(swarm, {node.peer_id for node in honest})


async def test_a_peer_that_computes_something_else_is_no_replica(swarm: LocalSwarm) -> None:
    honest = [await swarm.add(0, 2), await swarm.add(2, 4)]
    liars = [await swarm.toys.add(HostEngines(Echo(span := Span(0, 2)), make_part=Echo), span) for _ in range(2)]
    for liar in liars:
        swarm.toys.nodes.remove(liar)
        swarm.records[liar.identity.peer_id] = loaded(liar.record(), block_ms=0.01)
    assert await is_next(honest[0]) and not any(await looks(honest))
    assert honest[0].spans == ["0:2 serving"] and liars[0].engine.forwards, "it was asked, and its answer compared"
    for liar in liars:
        await liar.kill()


async def test_a_replica_that_computes_counts_also_if_it_hosts_a_part_of_our_blocks_or_more(swarm: LocalSwarm) -> None:
    mover = await swarm.add(0, 2)
    whole, part = await swarm.toys.serve(0, 4), await swarm.toys.serve(1, 3)
    records = await mover.presence.records()
    others = [one.claim for one in mover.presence.claims_by_peer(records)]
    host = mover.mover.host
    assert isinstance(host, Host) and len(others) == 2
    engines = HostEngines(ToyEngine(Span(0, 2)), make_part=lambda span, _limit: ToyEngine(span))
    mover.mover.host = Host(engines, host.served, kv_bytes_per_token=1)
    await mover.mover.host.start(mover.pool)
    await mover.mover.prover.check(mover.mover.host, records, others)
    assert mover.mover.prover.proven(Span(0, 2), others) == {whole.identity.peer_id, part.identity.peer_id}
    moved = [replace(other, span=Span(0, 1)) for other in others]
    assert mover.mover.prover.proven(Span(0, 2), moved) == set(), "what was shown holds for the blocks of the probe only"
    await mover.mover.host.stop()


async def test_a_flood_of_records_that_all_differ_keeps_no_node_from_its_sessions(swarm: LocalSwarm) -> None:
    """2,000 claims, no two alike: a plan of all of them takes seconds."""
    mover, _other = await swarm.add(0, 2), await swarm.add(2, 4)
    draw = random.Random(12)
    for number in range(2_000):
        start = draw.randrange(NUM_BLOCKS)
        span = Span(start, draw.randint(start + 1, NUM_BLOCKS))
        capacity = draw.randint(1, NUM_BLOCKS)
        served = hosted(MODEL, span, NUM_BLOCKS, capacity_blocks=capacity, block_ms=1 / draw.uniform(0.5, 50))
        peer = from_seed(number.to_bytes(32)).peer_id
        swarm.records[peer] = PeerRecord(peer=peer, hosted=served)
    with watched() as turns:
        await asyncio.create_task(mover.mover.look())
    assert turns.longest_s < 0.5, turns


def test_who_has_been_about_to_come_for_a_minute_does_not_count() -> None:
    joining = Joining()
    peers = [PeerId("a"), PeerId("b")]
    new, moving = Member(peer=peers[0], span=Span(0, 2)), Member(peer=peers[1], span=Span(0, 2))
    known = [Claims(peers[0], None, new), Claims(peers[1], replace(moving, span=Span(2, 4)), moving)]
    assert joining.current(known, 0.0) == known == joining.current(known, MAX_JOINING_S)
    (left,) = joining.current(known, MAX_JOINING_S + 1)
    assert (left.peer, left.joining, left.claim.span) == (peers[1], None, Span(2, 4))
    assert joining.current(known[1:], 200.0)[0].joining is None, "the same announcement does not become young again"
    elsewhere = replace(known[1], joining=replace(moving, span=Span(1, 3)))
    assert joining.current([elsewhere], 201.0) == [elsewhere]


@virtual_time
async def test_a_newcomer_counts_only_peers_that_answer_it() -> None:
    records = [PeerRecord(peer=new_identity().peer_id) for _ in range(200)]
    asked: list[PeerId] = []

    async def ping(record: PeerRecord) -> float:
        asked.append(record.peer)
        if record not in records[150:153]:
            raise PeerUnreachableError("no answer")
        return 0.0

    greeted = Greeted(ping, loop_clock())
    assert await greeted.answering(records) == records[150:153] == await greeted.answering(records)
    assert sorted(asked) == sorted(record.peer for record in records) != asked, "each once, in random order"
    await asyncio.sleep(GREETED_S - 0.01)
    await greeted.answering(records)
    assert len(asked) == 200, "for half a minute, what they said counts"
    await asyncio.sleep(0.01)
    await greeted.answering(records)
    assert len(asked) == 400


@virtual_time
async def test_peers_that_let_hellos_wait_cost_a_newcomer_six_seconds_and_a_look_of_placement_five() -> None:
    clock = loop_clock()
    records = [PeerRecord(peer=new_identity().peer_id) for _ in range(4 * AT_ONCE)]
    asked: list[PeerId] = []

    async def ping(record: PeerRecord) -> float:
        asked.append(record.peer)
        if record is not records[0]:
            await asyncio.Event().wait()
        return 0.0

    greeted = Greeted(ping, clock)
    assert set(await greeted.answering(records)) <= {records[0]}
    assert clock.now_s() == GREETING_S and len(asked) < len(records), "the last ones are not reached in that time"
    began_s, liveness = clock.now_s(), Liveness(ping)
    assert await liveness.check(records[:5]) == {record.peer for record in records[1:5]}
    assert clock.now_s() - began_s == 2 * HELLO_S + AGAIN_S


@virtual_time
async def test_a_peer_that_misses_one_hello_is_not_gone_and_one_that_is_gone_is_back_with_its_first_answer() -> None:
    answers_s, clock = [1.0], loop_clock()

    async def ping(record: PeerRecord) -> float:
        if not any(at_s <= clock.now_s() < at_s + 10 for at_s in answers_s):
            raise PeerUnreachableError("no answer")
        return 0.0

    peer = PeerRecord(peer=new_identity().peer_id)
    liveness = Liveness(ping)
    assert await liveness.check([peer]) == frozenset() and clock.now_s() == AGAIN_S, "it answered when it was asked again"
    await asyncio.sleep(20)
    assert await liveness.check([peer]) == {peer.peer} == liveness.gone
    answers_s.append(60.0)
    await asyncio.sleep(60 - clock.now_s())
    assert await liveness.check([peer]) == frozenset() == liveness.gone
