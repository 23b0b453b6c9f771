"""A client finds a route among silent peers and false claims.

Servers and sessions are real.

The addresses take TCP connections and say nothing; the directory is a list, as untrusted peers may fill it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch

from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from swarm.inference.client.session import Session, SessionConfig
from swarm.routing.router import Router
from swarm.streams.links import Links
from tests.hosting import hosted, loaded
from tests.swarm.inference.toy import (
    MODEL,
    NUM_BLOCKS,
    Records,
    ToySwarm,
    ask,
    fresh_seed,
    new_identity,
    random_tokens,
    reference,
)

NUM_SILENT = 150


class LocalSwarm(ToySwarm):
    """Two honest nodes, and what else is in the directory."""

    lies: tuple[PeerRecord, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.greeted = list[PeerId]()

    async def _ping(self, record: PeerRecord) -> float:
        self.greeted.append(record.peer)
        return await super()._ping(record)

    async def snapshot(self, model_name: str) -> Records:
        honest = (await super().snapshot(model_name)).peers
        return Records(tuple(sorted((*self.lies, *honest), key=lambda record: record.peer)))

    def new_client(self, route_timeout_s: float = 30.0) -> Session:
        """A client that has met no peer."""
        router = Router(self, self._ping, Weights(MODEL), NUM_BLOCKS)
        return Session(router, Links(self.pool), self.identity, SessionConfig(route_timeout_s=route_timeout_s))


@pytest.fixture
async def swarm() -> AsyncIterator[LocalSwarm]:
    fresh_seed()
    swarm = LocalSwarm()
    await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    yield swarm
    await swarm.stop()


async def answers_exactly(swarm: LocalSwarm, session: Session) -> None:
    row = random_tokens(6)
    answer = await ask(session, (), [6], row)
    assert torch.allclose(answer, torch.stack(reference(list(row), [(0, 2), (2, 4)])), atol=1e-6)
    assert {hop.peer for hop in session.route} == {node.identity.peer_id for node in swarm.nodes}


async def test_many_records_at_silent_addresses_do_not_keep_a_client_from_the_nodes_that_answer(swarm: LocalSwarm) -> None:
    with contextlib.ExitStack() as stack:
        addresses = []
        for _ in range(8):
            listening = stack.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            listening.listen(512)
            addresses.append(f"127.0.0.1:{listening.getsockname()[1]}")
        served = hosted(MODEL, Span(0, 4), 4, step_ms=0.01, free_tokens=10**6)
        lie = PeerRecord(peer=new_identity().peer_id, addresses=tuple(addresses), hosted=served)
        swarm.lies = tuple(replace(lie, peer=new_identity().peer_id) for _ in range(NUM_SILENT))
        async with asyncio.timeout(60):  # silent peers are asked side by side: one after the other, they would cost five minutes
            session = swarm.new_client(600.0)
            await answers_exactly(swarm, session)
            await session.close()
            swarm.greeted.clear()
            again = Session(session._router, Links(swarm.pool), swarm.identity, SessionConfig())
            await answers_exactly(swarm, again)
            await again.close()
    assert not {one.peer for one in swarm.lies}.intersection(swarm.greeted), "who has answered before is used at once"


async def test_an_answering_peer_that_only_claims_to_be_fast_gets_no_session_of_a_client_that_has_a_proven_route(
    swarm: LocalSwarm,
) -> None:
    session = swarm.new_client()
    await answers_exactly(swarm, session)
    boaster = await swarm.serve(0, 4)
    swarm.nodes.remove(boaster)
    swarm.lies = (loaded(boaster.record(), step_ms=0.01),)
    for _ in range(3):
        other = Session(session._router, Links(swarm.pool), swarm.identity, SessionConfig())
        await session._router.experience.latency.probe(swarm.lies[0])
        await answers_exactly(swarm, other)
        await other.close()
    await session.close()
    await boaster.kill()
