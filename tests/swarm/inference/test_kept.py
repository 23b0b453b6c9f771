"""Ended sessions that hops keep for forks, in memory that is free."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from protocols.errors import PeerUnreachableError
from protocols.ids import SessionId, Span
from protocols.inference import Close, Expect, Fork, Open, Reply, Route
from protocols.units import Blocks
from swarm.inference.client.session import Session
from swarm.inference.hop.hops import HopLimits
from tests.swarm.inference.probe import Probe, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToyNode, ToySwarm, ask, random_tokens, reference, until

HALVES = [(0, 2), (2, 4)]
KEEP_S = 60
SESSION = step_of(0).session


@pytest.fixture
async def swarm(swarm: ToySwarm) -> ToySwarm:
    """With two nodes."""
    for span in HALVES:
        await swarm.serve(*span)
    return swarm


def expected(tokens: Tensor, count: int) -> Tensor:
    return torch.stack(reference(list(tokens), HALVES))[-count:]


async def kept(swarm: ToySwarm, tokens: Tensor) -> Session:
    """A session of these tokens that has ended, and is kept at every node."""
    before = [len(node.host.hops.kept) for node in swarm.nodes]
    session = swarm.session(chunk_tokens=64)
    await ask(session, (), [len(tokens)], tokens)
    await session.close(keep_s=KEEP_S)
    await until(lambda: [len(node.host.hops.kept) for node in swarm.nodes] == [count + 1 for count in before])
    return session


def forwards(swarm: ToySwarm) -> list[int]:
    return [node.engine.forwards for node in swarm.nodes]


async def test_a_fork_begins_with_what_an_ended_session_has_computed(swarm: ToySwarm) -> None:
    start, new = random_tokens(50), random_tokens(3)
    session = await kept(swarm, start)
    assert all(node.host.num_sessions == 0 for node in swarm.nodes)
    for tokens in (0, 30):  # the whole, and a beginning of it; each leaves the kept one as it is
        twin, before = await session.fork(tokens), forwards(swarm)
        answer = await ask(twin, (), [3], new)
        assert torch.allclose(answer, expected(torch.cat([start[: tokens or 50], new]), 3))
        assert forwards(swarm) == [count + 1 for count in before]  # nothing but the new tokens was computed
        assert twin.is_fork_taken
        await twin.close()


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_fork_survives_the_death_of_a_hop(swarm: ToySwarm, victim: int) -> None:
    """The hop above has kept what it had sent; the client has kept its own."""
    start, new = random_tokens(30), random_tokens(8)
    twin = await (await kept(swarm, start)).fork(20)
    outputs = [await ask(twin, (), [4], new[:4])]
    await swarm.serve(*HALVES[victim])
    await swarm.nodes[victim].kill()
    outputs += [await ask(twin, (), [4], new[4:])]
    assert twin.is_fork_taken and twin.replaced == 1
    assert torch.allclose(torch.cat(outputs), expected(torch.cat([start[:20], new]), 8))
    await twin.close()


async def test_a_node_that_has_forgotten_gets_the_tokens_again(swarm: ToySwarm) -> None:
    start, new = random_tokens(30), random_tokens(3)
    session = await kept(swarm, start)
    for node in swarm.nodes:
        for hop in node.host.hops.kept.all_out():
            await hop.free()
    assert not any(node.engine.used_bytes for node in swarm.nodes)
    twin = await session.fork(20)
    assert torch.allclose(await ask(twin, (), [3], new), expected(torch.cat([start[:20], new]), 3))
    assert not twin.is_fork_taken
    await twin.close()


async def test_a_session_that_was_not_kept_cannot_be_forked_after_its_end(swarm: ToySwarm) -> None:
    session = swarm.session()
    await ask(session, (), [5], random_tokens(5))
    await session.close()
    with pytest.raises(PeerUnreachableError, match="closed"):
        await session.fork()
    assert all(len(node.host.hops.kept) == 0 for node in swarm.nodes)
    await until(lambda: not any(node.engine.used_bytes for node in swarm.nodes))


async def test_open_sessions_get_the_memory_of_kept_ones(swarm: ToySwarm) -> None:
    for node in swarm.nodes:
        node.host.runner.device.memory.limit_bytes = 600
    first, second = await kept(swarm, random_tokens(100)), await kept(swarm, random_tokens(100))
    free = [node.host.runner.device.memory.free_bytes for node in swarm.nodes]
    assert free == [600, 600]  # as other peers see it
    await (await first.fork()).close()  # does not reach a hop: nothing is sent before a first step
    twin = await first.fork()
    await ask(twin, (), [1], random_tokens(1))  # the first was used last
    await twin.close()
    await until(lambda: all(node.engine.used_bytes == 200 for node in swarm.nodes))
    large = swarm.session(chunk_tokens=64)
    tokens = random_tokens(300)
    assert torch.allclose(await ask(large, (), [300], tokens), expected(tokens, 300))
    again = await first.fork()
    await ask(again, (), [1], random_tokens(1))
    assert again.is_fork_taken
    lost = await second.fork()
    await ask(lost, (), [1], random_tokens(1))
    assert not lost.is_fork_taken
    for session in (large, again, lost):
        await session.close()


async def keep(probe: Probe, node: ToyNode, route: Route, session: SessionId) -> None:
    """A session of five tokens: opened, computed, closed."""
    grant = grant_of(probe.identity, route, session=session)
    line = await probe.open(node, grant)
    await line.hear()
    await line.say(replace(step_of(0, random_tokens(5)), session=session))
    assert isinstance(await (await probe.attach(node, grant)).hear(), Reply)
    await line.say(Close(session=session, keep_s=KEEP_S))


async def test_each_client_keeps_a_few_and_none_for_long(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4, limits=HopLimits(max_kept_per_client=2, keep_s=2.0))
    probes = [Probe(), Probe()]
    route = (replace(hop_of(node), unit=Blocks(0, 4)),)
    for number in range(6):
        await keep(probes[number % 2], node, route, SessionId(bytes([number]) * 16))
        await until(lambda number=number: len(node.host.hops.kept) >= min(number + 1, 4) and node.host.num_sessions == 0)
    assert len(node.host.hops.kept) == 4  # of six: two of each client
    await until(lambda: node.engine.used_bytes == 0)
    assert len(node.host.hops.kept) == 0
    for probe in probes:
        await probe.close()


async def test_a_kept_session_is_its_clients_alone(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    owner, outsider = Probe(), Probe()
    route = (replace(hop_of(node), unit=Blocks(0, 4)),)
    await keep(owner, node, route, SESSION)
    await until(lambda: len(node.host.hops.kept) == 1)
    heard = []
    for number, (probe, tokens) in enumerate([(outsider, 0), (owner, 6), (owner, 5), (owner, 0)], 1):
        other = await probe.line(node)
        grant = grant_of(probe.identity, route, session=bytes([number]) * 16)
        await other.say(Open(grant=grant, index=0, dtype="float32", fork=Fork(session=SESSION, step=1, tokens=tokens)))
        answer = await other.hear()
        assert isinstance(answer, Expect)
        heard.append(answer.step)
    assert heard == [0, 0, 1, 1]  # one that wants more tokens than there are gets none
    await asyncio.gather(owner.close(), outsider.close())


async def test_a_session_without_tokens_takes_no_place_and_that_of_a_part_keeps_no_engine(swarm: ToySwarm) -> None:
    for node in swarm.nodes:
        await node.kill()
        node.address = ""
    node = await swarm.serve(0, 4)
    probe = Probe()
    line = await probe.open(node, grant_of(probe.identity, (replace(hop_of(node), unit=Blocks(0, 4)),), session=SESSION))
    await line.hear()
    await line.say(Close(session=SESSION, keep_s=KEEP_S))
    part = swarm.session(blocks=Span(0, 2))
    await ask(part, (), [5], random_tokens(5))
    await part.close(keep_s=KEEP_S)
    await until(lambda: node.host.num_sessions == 0)
    assert len(node.host.hops.kept) == 0
    await until(lambda: node.host.runner.engines.used_bytes == 0)
    await probe.close()
