"""Hostile clients and hops at a node's sessions.

Storms of routes, memory by many small sessions, grants used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.defaults import GRANT_LIFE_S, STALL_S
from protocols.errors import UnauthenticatedError
from protocols.ids import SessionId
from protocols.inference import Close, Expect, Hop, Reroute
from swarm.inference.hop.hops import HopLimits
from swarm.inference.hop.pace import EPOCHS_S, MAX_EPOCHS
from swarm.rpc import dialling
from swarm.streams import links
from swarm.streams.dials import MAX_DIALS_PER_CLIENT
from tests.swarm.inference.probe import Probe, absent_hop, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, until
from tests.virtual_time import Shifted

SESSION = SessionId(b"s" * 16)


@pytest.fixture
async def hostile() -> AsyncIterator[Probe]:
    probe = Probe()
    yield probe
    await probe.close()


@pytest.fixture
def silent() -> Iterator[tuple[str, ...]]:
    """Eight addresses at which connections are accepted and nothing is ever said."""
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4_096)) for _ in range(8)]
        yield tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in listening)


@pytest.fixture
def endless_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial in vain does not end within the test: who waits for one is not served."""
    monkeypatch.setattr(dialling, "CONNECT_S", 600.0)
    monkeypatch.setattr(links, "DIAL_S", 600.0)


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def silent_hop(addresses: tuple[str, ...]) -> Hop:
    """A hop with an identity of its own that is dialled in vain."""
    return replace(absent_hop(2, 4), addresses=addresses)


# --- storms of routes


async def test_a_storm_of_reroutes_fills_no_node(
    swarm: ToySwarm, hostile: Probe, silent: tuple[str, ...], endless_dials: None
) -> None:
    """3,000 of them (1.7 MB) took 0.5 to 5.1 GB and 13,099 connections, for good."""
    node = await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    honest = swarm.session()
    await ask(honest, (), [1], random_tokens(1))
    storm = [
        Reroute(grant=grant_of(hostile.identity, [hop_of(node), silent_hop(silent)], epoch=epoch), index=0).encode()
        for epoch in range(1, 3_001)
    ]
    line = await hostile.open(node, grant_of(hostile.identity, [hop_of(node), silent_hop(silent)]))
    assert isinstance(await line.hear(), Expect)
    descriptors, memory = num_descriptors(), memory_bytes()
    flooding = asyncio.create_task(line.say(*storm))
    most = 0
    for _ in range(20):
        await asyncio.sleep(0.1)
        most = max(most, num_descriptors() - descriptors)
    (epoch,) = {
        hop.place.grant.epoch for hop in node.host.hops._hops.values() if hop.place.grant.client == hostile.identity.peer_id
    }
    assert 1 <= epoch < MAX_EPOCHS  # as many as come at once; the next waits, and the storm with it
    assert most <= 64  # a dial of eight addresses, and one that is just ending
    assert len(node.pool._channels) <= 3
    async with asyncio.timeout(30):  # others are served meanwhile
        await ask(honest, (), [1], random_tokens(1))
    flooding.cancel()
    await asyncio.wait((flooding,))
    line.stream.cancel()
    await hostile.pool.close()
    for hop in list(node.host.hops._hops.values()):
        if hop.place.grant.client == hostile.identity.peer_id:
            await hop.put(None, Close(session=SESSION))
    await until(lambda: num_descriptors() <= descriptors and memory_bytes() - memory < 64 << 20)
    await until(lambda: not [peer for peer, one in node.pool._channels.items() if not one.is_connected])
    await honest.close()


async def test_many_sessions_of_one_client_dial_few_silent_peers_at_once(
    swarm: ToySwarm, hostile: Probe, silent: tuple[str, ...], endless_dials: None
) -> None:
    node = await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    for number in range(24):
        route = [hop_of(node), silent_hop(silent[:1])]
        line = await hostile.open(node, grant_of(hostile.identity, route, session=bytes([number]) * 16))
        assert isinstance(await line.hear(), Expect)
    assert len(node.pool._channels) <= MAX_DIALS_PER_CLIENT
    honest = swarm.session()  # its dial, of a peer that is not connected yet either, waits for none of them
    async with asyncio.timeout(30):
        await ask(honest, (), [1], random_tokens(1))
    assert honest.replaced == 0
    await honest.close()
    await hostile.close()


# --- memory goes by client


async def test_many_small_sessions_of_one_client_do_not_outlive_one_larger_of_another(swarm: ToySwarm, hostile: Probe) -> None:
    node = await swarm.serve(0, 4, limits=HopLimits(held_bytes=6_000))
    honest = Probe()
    own = await honest.open(node, grant_of(honest.identity, [hop_of(node)]))
    await own.say(step_of(0, random_tokens(100)))  # 1,600 bytes of replies that are kept
    for number in range(60):
        session = bytes([number]) * 16
        line = await hostile.open(node, grant_of(hostile.identity, [hop_of(node)], session=session))
        await line.say(step_of(0, random_tokens(10), session=session))  # 160 bytes each, 9,600 in all

    def held(client: Probe) -> int:
        return sum(hop.held_bytes for hop in node.host.hops._hops.values() if hop.place.grant.client == client.identity.peer_id)

    await until(lambda: 0 < held(hostile) + held(honest) <= 6_000 and len(node.host.hops) < 61)
    assert held(honest) == 1_600 and held(hostile) <= 4_400
    await honest.close()


async def test_sessions_that_nobody_uses_do_not_keep_a_node_full(swarm: ToySwarm, hostile: Probe) -> None:
    time_passes, limits = Shifted(), HopLimits(max_sessions=4)
    swarm.clock = time_passes.clock()
    node = await swarm.serve(0, 4, limits=limits)
    for number in range(4):
        line = await hostile.open(node, grant_of(hostile.identity, [hop_of(node)], session=bytes([number]) * 16))
        assert isinstance(await line.hear(), Expect)
    time_passes.ahead_s = limits.unused_s
    honest = swarm.session()
    await ask(honest, (), [1], random_tokens(1))
    assert honest.replaced == 0 and len(node.host.hops) == 4
    await honest.close()


# --- grants


async def test_a_grant_without_end_is_refused(swarm: ToySwarm, hostile: Probe) -> None:
    node = await swarm.serve(0, 4)
    line = await hostile.open(node, grant_of(hostile.identity, [hop_of(node)], expires_in_s=10 * GRANT_LIFE_S))
    with pytest.raises(UnauthenticatedError, match="a grant ends within 3600 s"):
        await line.hear_nothing_more()
    assert len(node.host.hops) == 0


async def test_the_hop_above_cannot_use_a_grant_again_after_the_client_has_closed(swarm: ToySwarm, hostile: Probe) -> None:
    """hostile is an honest client's first hop: it has seen the grant, and is the caller that it names."""
    node, client = await swarm.serve(2, 4), Probe()
    route = [absent_hop(0, 2, hostile.identity), hop_of(node)]
    grant = grant_of(client.identity, route, epoch=3)
    line = await hostile.open(node, grant, 1)
    await line.hear()
    await line.say(step_of(0, random_tokens(3), epoch=3))
    await until(lambda: node.engine.used_bytes == 3)
    await line.say(Close(session=SESSION))
    assert await line.hear() is None
    for replayed in (grant, grant_of(client.identity, route, epoch=2)):
        again = await hostile.open(node, replayed, 1)
        with pytest.raises(UnauthenticatedError, match="ended here in epoch 3"):
            await again.hear_nothing_more()
    await until(lambda: len(node.host.hops) == 0 and node.engine.used_bytes == 0)
    later = await hostile.open(node, grant_of(client.identity, route, epoch=4), 1)  # the client wants this hop back
    assert await later.hear() == Expect(session=SESSION, epoch=4, step=0)
    await client.close()


async def test_a_session_whose_hops_die_again_and_again_still_answers(swarm: ToySwarm) -> None:
    """Honest deaths, more in EPOCHS_S than epochs go at once: they are slowed down for longer than a reply may be late (here, all
    waits are a third as long)."""
    limits = HopLimits(epochs_s=EPOCHS_S / 3)
    first = await swarm.serve(0, 2, limits=limits)
    session, began_s = swarm.session(route_timeout_s=60.0, stall_s=STALL_S / 3), time.monotonic()
    for number in range(MAX_EPOCHS + 2):
        node = await swarm.serve(2, 4, limits=limits)
        await ask(session, (), [1], random_tokens(1))
        if number <= MAX_EPOCHS:
            await node.kill()
            swarm.nodes.remove(node)
    assert not swarm.router.experience.blame.is_avoided(first.identity.peer_id, time.monotonic())
    assert time.monotonic() - began_s >= limits.epochs_s, "nothing slowed them down"
    assert session.replaced == MAX_EPOCHS + 1 and first.engine.used_bytes == MAX_EPOCHS + 2
    await session.close()
