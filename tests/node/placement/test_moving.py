"""A node moves to other blocks: no session loses a token.

The old span serves until the new one does, and no blocks are given up that others need. Hosts, servers,
sessions, presence and dispatcher are real; the blocks are arithmetic (`toy.py`) and the directory is a list.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from node.config import NodeConfig
from node.events import Event
from node.placement.liveness import SMALL_SWARM, Liveness, watched
from node.placement.moving import Mover, Pace
from node.placement.presence import Presence
from node.placement.proving import PROVEN_S, Prover
from node.placement.span_choice import Claims
from node.serving.dispatcher import Dispatcher
from node.serving.host import Host, HostEngines
from protocols import services
from protocols.errors import BadRequestError, OverloadedError, PeerUnreachableError
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS
from swarm import places
from swarm.clock import SYSTEM, Clock
from swarm.placement.choose import Capacity
from swarm.placement.members import Member, digest
from swarm.rpc import tls
from swarm.rpc.pool import ChannelPool
from swarm.rpc.server import RpcServer
from tests.swarm.inference.toy import (
    MODEL,
    NUM_BLOCKS,
    WIDTH,
    Records,
    ToyEngine,
    ToyNode,
    ToySwarm,
    ask,
    fresh_seed,
    new_identity,
    random_tokens,
    reference,
)
from tests.virtual_time import Shifted, loop_clock, virtual_time

CONFIG = NodeConfig(model="toy", data_dir=places.data_dir({"HOME": "/h"}))
PACE = Pace(race_wait_s=0.01, drain_s=0.3)


@dataclass
class LocalSwarm:
    """A toy swarm whose members may move; the directory keeps the records of killed nodes."""

    toys: ToySwarm
    records: dict[PeerId, PeerRecord] = field(default_factory=dict)
    nodes: list[MovingNode] = field(default_factory=list)

    async def snapshot(self, model_name: str) -> Records:
        fixed = {node.identity.peer_id: node.record() for node in self.toys.nodes if node.server is not None}
        self.records |= fixed
        return Records(tuple(self.records[peer] for peer in sorted(self.records)))

    async def add(self, start: int, stop: int) -> MovingNode:
        node = MovingNode(self)
        await node.start(Span(start, stop))
        self.nodes.append(node)
        return node

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()
        await self.toys.stop()


class MovingNode:
    """A node as `run_node` makes it, with toy blocks."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self.swarm, self.identity = swarm, new_identity()
        self.directory, self.peer_id, self.reachable = self, self.identity.peer_id, True
        self.round_trips_ms: dict[PeerId, float] = {}
        tls_certificate = tls.make(self.identity)
        self.certificate, self.multiaddrs = tls_certificate.der, ()
        self.dispatcher, self.pool = Dispatcher(), ChannelPool(self.identity)
        self.server = RpcServer(
            self.identity, tls_certificate, {**self.dispatcher.handlers(), services.HELLO.name: ToyNode._hello.__get__(self)}
        )
        self.swarm_name = "test"
        self.addresses: tuple[str, ...] = ()
        self.events: list[Event] = []
        self.engines: list[ToyEngine] = []
        self.free_blocks = 10
        self.fails: Exception | None = None
        self.max_units = 16

    async def ping(self, record: PeerRecord) -> float:
        return await self.swarm.toys._ping(record)

    def has_met(self, peer: PeerId) -> bool:
        return False

    # the face of a directory

    async def snapshot(self, model_name: str) -> Records:
        return await self.swarm.snapshot(model_name)

    async def announce(self, make_record: Any, models: Any) -> None:
        record: PeerRecord = make_record()
        if len(record.hosted) > self.max_units:
            raise BadRequestError("the record is too long")
        self.swarm.records[self.peer_id] = PeerRecord.parse(record.encode())

    async def start(self, span: Span) -> None:
        self.addresses = (f"127.0.0.1:{await self.server.start()}",)
        await self.take(span)

    async def take(self, span: Span, pace: Pace = PACE, clock: Clock = SYSTEM) -> None:
        self.presence = Presence(CONFIG, self, MODEL, NUM_BLOCKS)  # type: ignore[arg-type]
        self.presence.dtype, self.presence.capacity_blocks = "float32", 2
        host = await self.make(span)
        self.dispatcher.open(host)
        await self.presence.serve(host)
        self.mover = Mover(
            host=host, presence=self.presence, dispatcher=self.dispatcher, make=self.make,
            capacity=Capacity(free_bytes=2, block_bytes=(1,) * NUM_BLOCKS), free_bytes=lambda: self.free_blocks,
            liveness=Liveness(self.swarm.toys._ping),
            prover=Prover(self.identity, self.pool, self.swarm.toys._ping), on_event=self.events.append,
            pace=pace, clock=clock,
        )  # fmt: skip

    async def make(self, span: Span) -> Host:
        if self.fails:
            raise self.fails
        self.engines.append(ToyEngine(span))
        engines = HostEngines(self.engines[-1], block_ms=1.0)  # type: ignore[arg-type]
        host = Host(engines, self.presence.served(span, WIDTH), kv_bytes_per_token=1)
        await host.start(self.pool)
        return host

    async def stop(self) -> None:
        await self.server.stop(0)
        await self.presence.stop_serving()
        await self.pool.close()

    @property
    def spans(self) -> list[str]:
        return [f"{served.span} {self.record.state_of(served)}" for served in self.record.blocks()]

    @property
    def record(self) -> PeerRecord:
        return self.swarm.records[self.peer_id]


@pytest.fixture
async def swarm() -> AsyncIterator[LocalSwarm]:
    fresh_seed()
    toys = ToySwarm()
    swarm = LocalSwarm(toys)
    toys.router._shown._directory = swarm
    yield swarm
    await swarm.stop()


async def test_a_move_for_the_swarms_gain_costs_running_sessions_no_token(swarm: LocalSwarm) -> None:
    await swarm.toys.serve(0, 2)
    movers = [await swarm.add(2, 4) for _ in range(3)]
    (goes,) = [node for node in movers if await is_next(node)]
    staying = [node.peer_id for node in movers if node is not goes]
    for peer in staying:
        swarm.toys.router.experience.failed(peer, OverloadedError("so that all sessions run over the one that moves"))
    sessions = [swarm.toys.session() for _ in range(5)]
    rows = [random_tokens(12) for _ in sessions]
    answers = [
        [await ask(session, (), [1], token[None]) for token in row[:6]] for session, row in zip(sessions, rows, strict=True)
    ]
    for peer in staying:
        swarm.toys.router.experience.blame.forgive(peer, time.monotonic())
    assert not any([await node.mover.look() for node in movers]), "the first look only makes up a mind"
    assert [node for node in movers if await node.mover.look()] == [goes] and goes.spans == ["0:2 serving"]
    assert "2.00 times as fast" in goes.events[-1].text and goes.events[-1].kind == "moved"
    assert goes.engines[0].used_bytes == 0 and goes.engines[0].forwards > 0
    for session, row, answer in zip(sessions, rows, answers, strict=True):
        answer += [await ask(session, (), [1], token[None]) for token in row[6:]]
        expected = torch.stack(reference(list(row), [(0, 2), (2, 4)]))
        assert torch.allclose(torch.cat(answer), expected, atol=1e-6)
        await session.close()
    assert all(session.replaced for session in sessions), "a session did not run over the one that moved: nothing was shown"
    assert not any([await node.mover.look() for node in movers for _look in range(3)]), "all stand still"


async def test_a_death_without_an_announcement_is_noticed_and_its_gap_filled_under_a_waiting_session(swarm: LocalSwarm) -> None:
    doomed = await swarm.toys.serve(0, 2)
    movers = [await swarm.add(2, 4) for _ in range(2)]
    session, row = swarm.toys.session(), random_tokens(8)
    before = [await ask(session, (), [1], token[None]) for token in row[:4]]
    await doomed.kill()
    assert doomed.identity.peer_id in swarm.records, "its record was withdrawn: this test needs one that has not expired"
    rest = asyncio.create_task(ask(session, (), [4], row[4:]))
    moved = [node for node in movers if await node.mover.look()]
    assert [node.spans for node in moved] == [["0:2 serving"]] and "no node hosts 0:2" in moved[0].events[0].text
    after = await rest
    assert torch.allclose(torch.cat([*before, after]), torch.stack(reference(list(row), [(0, 2), (2, 4)])), atol=1e-6)
    await session.close()


async def test_who_looks_at_the_same_moment_does_not_fill_the_gap_twice(swarm: LocalSwarm) -> None:
    movers = [await swarm.add(2, 4) for _ in range(4)]
    moved = await asyncio.gather(*(node.mover.look() for node in movers))
    assert sum(moved) == 1
    assert sorted(span for node in movers for span in node.spans) == ["0:2 serving", *["2:4 serving"] * 3]


async def test_while_a_span_is_loaded_the_old_one_serves_and_both_are_announced(swarm: LocalSwarm) -> None:
    first, _second = await swarm.add(2, 4), await swarm.add(2, 4)
    node = first if await is_next(first) else _second
    go = asyncio.Event()
    make = node.mover.make

    async def slowly(span: Span) -> Host:
        await go.wait()
        return await make(span)

    node.mover.make = slowly
    looking = asyncio.create_task(node.mover.look())
    async with asyncio.timeout(60):
        while node.spans != ["2:4 serving", "0:2 joining"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert node.record.state == "serving" and node.mover.host is not None and not node.mover.host.is_draining
    go.set()
    assert await looking and node.spans == ["0:2 serving"]


async def is_next(node: MovingNode) -> bool:
    """Whether the plan moves this node."""
    others = node.presence.claims_by_peer(await node.presence.records())
    return await node.mover._decide([one.claim for one in others]) is not None


async def test_the_ends_are_announced_if_all_hosts_of_one_state_have_them(swarm: LocalSwarm) -> None:
    """Other peers count embedding and head for all blocks of that state; a client without files must not be sent to a host without them."""
    node = await swarm.add(0, 2)
    old = node.presence.hosts[0]
    old.served = replace(old.served, beside=ENDS)
    assert [str(one.unit) for one in node.presence.record().hosted] == ["decoder/0:2", "decoder/ends"]
    new = await node.make(Span(2, 4))
    await node.presence.serve(new)
    assert [str(one.unit) for one in node.record.hosted] == ["decoder/2:4", "decoder/0:2"]
    old.drain()
    await node.presence.tell()
    states = [(str(one.unit), node.record.state_of(one)) for one in node.record.hosted]
    assert states == [("decoder/2:4", "serving"), ("decoder/0:2", "draining"), ("decoder/ends", "draining")]
    loads = [one.load for one in node.record.hosted]
    assert [load.free_tokens > 0 for load in loads] == [True, True, False] and loads[0].block_ms == 1.0


async def test_without_memory_for_both_the_old_span_goes_first_only_where_others_serve_it(swarm: LocalSwarm) -> None:
    await swarm.toys.serve(0, 2)
    movers = [await swarm.add(2, 4) for _ in range(3)]
    for node in movers:
        node.free_blocks = 0
    for node in movers:
        await node.mover.look()
    moved = [node for node in movers if await node.mover.look()]
    assert [node.spans for node in moved] == [["0:2 serving"]]


async def test_a_span_that_cannot_be_loaded_leaves_all_as_it_was(swarm: LocalSwarm) -> None:
    movers = [await swarm.add(2, 4) for _ in range(2)]
    for node in movers:
        node.fails = OverloadedError("no disk left")
        if await is_next(node):
            with pytest.raises(OverloadedError):
                await node.mover.look()
        assert node.spans == ["2:4 serving"]
        assert node.mover.host is not None and not node.mover.host.is_draining


async def test_a_node_without_memory_for_its_new_span_loads_the_old_one_again(swarm: LocalSwarm) -> None:
    """The failed attempt is over by then: what it had loaded is free."""
    await swarm.toys.serve(0, 2)
    movers = [await swarm.add(2, 4) for _ in range(3)]
    (goes,) = [node for node in movers if await is_next(node)]
    goes.free_blocks, make, asked = 0, goes.mover.make, list[tuple[Span, object]]()

    async def made(span: Span) -> Host:
        asked.append((span, sys.exception()))
        if len(asked) == 1:
            raise MemoryError("no memory to load blocks 0:2")
        return await make(span)

    goes.mover.make = made
    await goes.mover.look()
    await goes.mover.look()
    assert asked == [(Span(0, 2), None), (Span(2, 4), None)] and goes.spans == ["2:4 serving"]


async def test_a_span_that_takes_longer_to_load_than_a_proof_lasts_is_not_thrown_away(swarm: LocalSwarm) -> None:
    await swarm.toys.serve(0, 2)
    movers = [await swarm.add(2, 4) for _ in range(3)]
    (goes,) = [node for node in movers if await is_next(node)]
    time_passes = Shifted()
    goes.mover.prover = Prover(goes.identity, goes.pool, swarm.toys._ping, time_passes.clock())
    make = goes.mover.make

    async def slowly(span: Span) -> Host:
        time_passes.ahead_s += PROVEN_S + 1
        return await make(span)

    goes.mover.make = slowly
    assert [await goes.mover.look() for _ in range(2)] == [False, True] and goes.spans == ["0:2 serving"]


async def test_a_move_that_cannot_be_announced_is_taken_back(swarm: LocalSwarm) -> None:
    movers = [await swarm.add(2, 4) for _ in range(2)]
    (node,) = [one for one in movers if await is_next(one)]
    node.max_units = 1
    with pytest.raises(BadRequestError, match="too long"):
        await node.mover.look()
    await node.presence.tell()  # as at every renewal
    assert node.spans == ["2:4 serving"]


@virtual_time
async def test_a_node_looks_about_every_ten_seconds_also_after_a_look_that_failed() -> None:
    fresh_seed()
    swarm, clock = LocalSwarm(ToySwarm()), loop_clock()
    node, looked_s = MovingNode(swarm), list[float]()
    await node.take(Span(0, 4), Pace(), clock)
    snapshot = swarm.snapshot

    async def noted(model_name: str) -> Records:
        if clock.now_s() not in looked_s:
            looked_s.append(clock.now_s())
        if len(looked_s) == 3:
            raise PeerUnreachableError("the directory does not answer")
        if len(looked_s) == 5:
            raise MemoryError("no memory to load blocks 0:2")
        return await snapshot(model_name)

    swarm.snapshot = noted  # type: ignore[method-assign]
    looking = asyncio.create_task(node.mover.keep_looking(random.Random(node.peer_id)))
    await asyncio.sleep(600)
    pauses_s = [after_s - before_s for before_s, after_s in pairwise([0.0, *looked_s])]
    assert len(pauses_s) > 50 and 8 <= min(pauses_s) < max(pauses_s) <= 12 and not looking.done()
    looking.cancel()
    await asyncio.gather(looking, node.presence.stop_serving(), return_exceptions=True)
    assert node.spans == ["0:4 serving"]


async def test_a_failure_of_our_own_is_not_held_against_a_replica(swarm: LocalSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, replica = await swarm.add(0, 2), await swarm.toys.serve(0, 2)
    records = await mover.presence.records()
    others = [one.claim for one in mover.presence.claims_by_peer(records)]
    prover, host = mover.mover.prover, mover.mover.host
    assert host is not None
    with monkeypatch.context() as patch:

        async def full(*_: object) -> None:
            raise OverloadedError("no memory for a probe")

        patch.setattr(prover, "_ours", full)
        await prover.check(host, records, others)
        assert prover.proven(Span(0, 2), others) == set()
    await prover.check(host, records, others)
    assert prover.proven(Span(0, 2), others) == {replica.identity.peer_id}


def claims_of(me: PeerId, serving: Span | None, joining: Span | None) -> Claims:
    def member(span: Span | None) -> Member | None:
        return None if span is None else Member(peer=me, span=span)

    return Claims(me, member(serving), member(joining))


def test_of_two_who_move_the_one_with_the_larger_hash_yields_and_newcomers_go_before_both() -> None:
    small, large = sorted((PeerId("a"), PeerId("b")), key=digest)
    moving = claims_of(large, Span(0, 2), Span(2, 4))
    assert moving.seen_by(small).span == Span(0, 2) and moving.stands(small)
    moving = claims_of(small, Span(0, 2), Span(2, 4))
    assert moving.seen_by(large).span == Span(2, 4) and not moving.stands(large)
    assert claims_of(large, None, Span(2, 4)).seen_by(small).span == Span(2, 4)


def test_in_a_small_swarm_all_are_asked_and_in_a_large_one_those_whose_blocks_we_would_take() -> None:
    def member(number: int, span: Span) -> Member:
        return Member(peer=PeerId(f"p{number}"), span=span, capacity_blocks=4)

    few = [member(number, Span(0, 4)) for number in range(5)]
    assert watched(PeerId("p0"), few, 4) == {PeerId(f"p{number}") for number in range(1, 5)}
    many = [member(number, Span(0, 4)) for number in range(SMALL_SWARM + 5)] + [member(99, Span(4, 8)), member(98, Span(8, 12))]
    watchers = {one.peer: watched(one.peer, many, 12) for one in many}
    assert set.union(*watchers.values()) == {PeerId("p99"), PeerId("p98")}
    assert sum(PeerId("p99") in asked for asked in watchers.values()) == 1
