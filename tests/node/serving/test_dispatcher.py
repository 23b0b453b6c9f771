"""The dispatcher: sessions reach the weights and blocks of their grants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from node.serving.host import Host, HostEngines
from protocols.errors import NoRouteError
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from swarm.inference.client.session import Session, SessionConfig
from swarm.routing.router import Router
from swarm.streams.links import Links
from tests.hosting import hosted
from tests.swarm.inference.toy import (
    MODEL,
    NUM_BLOCKS,
    Records,
    ToyEngine,
    ToyRow,
    ToySwarm,
    ask,
    fresh_seed,
    random_tokens,
    reference,
)

OTHER, TRAINED = Weights(ModelId("other", "cd" * 32)), Weights(MODEL, 7, bytes(32))
SPAN = Span(0, NUM_BLOCKS)


class Scaled(ToyEngine):
    """Another model: its outputs are the toy's times `factor`."""

    factor = 1.0

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        return super().step(items, hidden, positions) * self.factor


class OneNode:
    """A directory of one record."""

    def __init__(self, record: PeerRecord) -> None:
        self.records = Records((record,))

    async def snapshot(self, model_name: str) -> Records:
        return self.records


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    fresh_seed()
    found = ToySwarm()
    yield found
    await found.stop()


async def test_hosts_of_the_same_blocks_of_several_weights_each_get_their_own_sessions(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, NUM_BLOCKS)
    engines, hosts, record = {Weights(MODEL): node.engine}, [node.host], node.record()
    for factor, weights in ((2.0, OTHER), (3.0, TRAINED)):
        engines[weights] = engine = Scaled(SPAN)
        engine.factor = factor
        host = Host(HostEngines(engine), replace(node.host.served, weights=weights), kv_bytes_per_token=1)  # type: ignore[arg-type]
        await host.start(node.pool)
        node.dispatcher.open(host)
        hosts.append(host)
        units = (replace(one, weights=weights) for one in hosted(weights.model, SPAN, NUM_BLOCKS, free_tokens=10**6))
        record = replace(record, hosted=(*record.hosted, *units))
    directory, row = OneNode(record), random_tokens(3)
    sessions = [
        Session(Router(directory, swarm._ping, weights, NUM_BLOCKS), Links(swarm.pool), swarm.identity, SessionConfig())
        for weights in engines
    ]
    expected = torch.stack(reference(list(row), [(0, NUM_BLOCKS)]))
    for factor, session in enumerate(sessions, 1):  # all open at once
        assert torch.allclose(await ask(session, (), [3], row), expected * factor, atol=1e-5)
    assert [engine.forwards for engine in engines.values()] == [1, 1, 1] and [host.num_sessions for host in hosts] == [1, 1, 1]
    node.dispatcher.close(hosts[1])  # of the same blocks as the others
    late = Session(sessions[1]._router, Links(swarm.pool), swarm.identity, SessionConfig(route_timeout_s=2.0))
    with pytest.raises(NoRouteError, match=r"this peer serves toy@.*, the session is for other@cdcdcdcdcdcd"):
        await ask(late, (), [3], row)
    for session in (*sessions, late):
        await session.close()
    for host in hosts[1:]:
        await host.stop()
