"""A host: its lifetime, and what it says of its load."""

from __future__ import annotations

import asyncio

import pytest
import torch

from protocols.errors import DrainingError, InternalError, NoRouteError
from tests.swarm.inference.conftest import swarm as swarm
from tests.swarm.inference.probe import Probe, grant_of, hop_of
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, reference, until


async def test_load_counts_sessions_and_free_tokens(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4, limit_tokens=50)
    assert (node.host.load().free_tokens, node.host.num_sessions, node.host.load().queue) == (50, 0, 0)
    session = swarm.session()
    await ask(session, (), [20], random_tokens(20))
    assert (node.host.load().free_tokens, node.host.num_sessions) == (30, 1)
    assert node.host.load().step_ms > 0
    await session.close()
    await until(lambda: node.host.load().free_tokens == 50)


async def test_before_it_is_opened_and_after_its_stop_a_host_refuses(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    node.dispatcher.close(node.host)
    probe = Probe()
    with pytest.raises((DrainingError, InternalError)):  # gRPC may lose the reason if the caller is still sending
        await (await probe.open(node, grant_of(probe.identity, [hop_of(node)]))).hear_nothing_more()
    node.dispatcher.open(node.host)
    await node.host.stop()
    await node.host.stop()
    with pytest.raises(DrainingError, match="leaving"):
        await (await probe.open(node, grant_of(probe.identity, [hop_of(node)]))).hear_nothing_more()
    assert not node.host.runner.is_running
    await probe.close()


async def test_a_host_that_leaves_gives_all_memory_back_and_its_sessions_go_on_elsewhere(swarm: ToySwarm) -> None:
    leaving, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session, tokens = swarm.session(), random_tokens(10)
    before = [await ask(session, (), [1], token[None]) for token in tokens[:5]]
    await swarm.serve(0, 2)
    await leaving.host.stop()
    assert leaving.engine.used_bytes == 0 and leaving.host.num_sessions == 0
    after = [await ask(session, (), [1], token[None]) for token in tokens[5:]]
    expected = torch.stack(reference(list(tokens), [(0, 2), (2, 4)]))
    assert torch.allclose(torch.cat(before + after), expected, atol=1e-6)
    assert last.engine.forwards == 10, "the hop below was not closed with the one that left, and computed nothing twice"
    await session.close()


async def test_a_host_that_leaves_under_running_steps_leaks_nothing(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    sessions = [swarm.session(route_timeout_s=2.0) for _ in range(6)]
    steps = [asyncio.create_task(ask(session, (), [300], random_tokens(300))) for session in sessions]
    await until(lambda: node.engine.forwards > 0)
    await node.host.stop()
    assert node.engine.used_bytes == 0
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    assert any(isinstance(outcome, NoRouteError) for outcome in outcomes)
    await asyncio.gather(*(session.close() for session in sessions))
