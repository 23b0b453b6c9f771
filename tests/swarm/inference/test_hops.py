"""All sessions of one node.

Tested: who may open one, how many, when they end, and how much is retained for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import torch

from protocols import services
from protocols.defaults import IDLE_S, RESUME_S
from protocols.errors import (
    BadRequestError,
    DrainingError,
    ModelMismatchError,
    OverloadedError,
    SpanNotServedError,
    SwarmError,
    UnauthenticatedError,
)
from protocols.ids import ModelId, SessionId
from protocols.inference import Attach, Close, Expect, Open, Reply
from protocols.weights_id import Weights
from swarm.inference.hop.hops import HopLimits
from tests.swarm.inference.probe import Line, Probe, absent_hop, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToyRow, ToySwarm, ask, new_identity, random_tokens, reference, until
from tests.virtual_time import Shifted

SESSION = SessionId(b"s" * 16)


@pytest.fixture
async def client() -> AsyncIterator[Probe]:
    probe = Probe()
    yield probe
    await probe.close()


async def refused(line: Line, error: type[SwarmError], says: str | None = None) -> None:
    with pytest.raises(error, match=says):
        await line.hear_nothing_more()


# --- who may enter


@pytest.mark.parametrize("first", ["step", "attach on session", "open on attach", "garbage", "nothing"])
async def test_the_first_message_must_open(swarm: ToySwarm, client: Probe, first: str) -> None:
    node = await swarm.serve(0, 4)
    grant = grant_of(client.identity, [hop_of(node)])
    line = await client.line(node, services.ATTACH if first == "open on attach" else services.SESSION)
    words = {
        "step": step_of(0),
        "attach on session": Attach(grant=grant, step=0),
        "open on attach": Open(grant=grant, index=0, dtype="float32"),
        "garbage": b"\0" * 100,
    }
    if first == "nothing":
        await line.stream.end()
    else:
        await line.say(words[first])
    await refused(line, BadRequestError)
    assert node.host.num_sessions == 0


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("forged", UnauthenticatedError),
        ("expired", UnauthenticatedError),
        ("not the hop above", UnauthenticatedError),
        ("other weights", ModelMismatchError),
        ("another span", SpanNotServedError),
        ("another peer's place", BadRequestError),
        ("another precision", BadRequestError),
    ],
)
async def test_an_open_that_does_not_prove_right_is_refused_and_costs_nothing(
    swarm: ToySwarm, client: Probe, case: str, error: type[SwarmError]
) -> None:
    node = await swarm.serve(2, 4)
    above = absent_hop(0, 2, client.identity)
    person = new_identity()
    grant, index, dtype = grant_of(person, [above, hop_of(node)]), 1, "float32"
    match case:
        case "forged":
            object.__setattr__(grant, "signature", bytes(64))
        case "expired":
            grant = grant_of(person, [above, hop_of(node)], expires_in_s=-1)
        case "not the hop above":
            grant = grant_of(person, [absent_hop(0, 2), hop_of(node)])
        case "other weights":
            object.__setattr__(grant, "weights", Weights(ModelId("toy", "cd" * 32)))
            grant = grant.signed(person.sign)
        case "another span":
            wider = absent_hop(1, 4, node.identity)
            grant = grant_of(person, [absent_hop(0, 1, client.identity), wider])
        case "another peer's place":
            grant = grant_of(person, [absent_hop(0, 2, client.identity), absent_hop(2, 4)])
        case "another precision":
            dtype = "bfloat16"
    await refused(await client.open(node, grant, index, dtype), error)
    assert node.host.num_sessions == 0


async def test_a_stranger_cannot_attach_to_another_client_s_session(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(0, 4)
    grant = grant_of(client.identity, [hop_of(node)])
    replies, line = await client.attach(node, grant), await client.open(node, grant)
    await line.hear()
    outsider = Probe()
    await refused(await outsider.attach(node, grant), UnauthenticatedError, "is called by")
    own = await outsider.attach(node, grant_of(outsider.identity, [hop_of(node)]))  # same session id, another session
    await line.say(step_of(0))
    assert isinstance(await replies.hear(), Reply)
    assert node.host.num_sessions == 2
    own.stream.cancel()
    await outsider.close()


async def test_one_session_too_many_is_refused_and_one_that_ends_makes_room(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(0, 4, limits=HopLimits(max_sessions=2))
    lines = [await client.open(node, grant_of(client.identity, [hop_of(node)], session=bytes([n]) * 16)) for n in range(2)]
    for line in lines:
        await line.hear()
    more = grant_of(client.identity, [hop_of(node)], session=b"x" * 16)
    await refused(await client.open(node, more), OverloadedError, "2 sessions, its limit")
    await lines[0].say(Close(session=SessionId(b"\0" * 16)))
    assert await lines[0].hear() is None
    await until(lambda: node.host.num_sessions == 1)
    assert isinstance(await (await client.open(node, more)).hear(), Expect)


async def test_a_node_that_leaves_takes_nothing_new(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(0, 4)
    await node.host.stop()
    await refused(await client.open(node, grant_of(client.identity, [hop_of(node)])), DrainingError)


# --- how sessions end


async def test_a_session_opened_anew_while_it_closes_is_a_new_session(swarm: ToySwarm, client: Probe) -> None:
    """A closing session waits for the device to free its sequences; a client that opens it meanwhile must not be lost in it."""
    node, release = await swarm.serve(0, 4), threading.Event()
    give_back = node.engine.close

    def slowly(row: ToyRow) -> None:
        release.wait(60)
        give_back(row)

    node.engine.close = slowly  # type: ignore[method-assign]
    line = await client.open(node, grant_of(client.identity, [hop_of(node)]))
    await line.hear()
    await line.say(step_of(0, random_tokens(3)))
    await until(lambda: node.engine.used_bytes == 3)  # a close ends at once what is not computed yet
    await line.say(Close(session=SESSION))
    assert await line.hear() is None
    again = await client.open(node, grant_of(client.identity, [hop_of(node)], epoch=1))
    assert await again.hear() == Expect(session=SESSION, epoch=1, step=0)
    assert node.engine.used_bytes == 3  # the old one is still there
    release.set()
    await until(lambda: node.engine.used_bytes == 0)
    assert node.host.num_sessions == 1  # and its end was not taken for the new one's
    await again.say(step_of(0, random_tokens(2), epoch=1))
    await until(lambda: node.engine.used_bytes == 2)


async def test_lines_that_crowd_into_a_closing_session_neither_hang_the_node_nor_cost_memory(
    swarm: ToySwarm, client: Probe
) -> None:
    node = await swarm.serve(0, 4)
    grant = grant_of(client.identity, [hop_of(node)])
    line = await client.open(node, grant)
    await line.hear()
    crowd = [await client.line(node, services.ATTACH) for _ in range(60)]
    await asyncio.gather(line.say(step_of(0), Close(session=SESSION)), *(each.say(Attach(grant=grant, step=0)) for each in crowd))
    for each in crowd:
        each.stream.cancel()
    await client.pool.forget(node.identity.peer_id)
    other = Probe()
    assert isinstance(await (await other.open(node, grant_of(other.identity, [hop_of(node)]))).hear(), Expect)
    await other.close()
    await until(lambda: node.engine.used_bytes == 0)


async def test_an_attach_without_a_session_is_kept_for_a_while_only(swarm: ToySwarm, client: Probe) -> None:
    time_passes = Shifted()
    swarm.clock = time_passes.clock()
    node = await swarm.serve(0, 4)
    line = await client.attach(node, grant_of(client.identity, [hop_of(node)]))
    await until(lambda: node.host.num_sessions == 1)
    time_passes.ahead_s = RESUME_S
    assert await line.hear() is None
    await until(lambda: node.host.num_sessions == 0)


async def test_an_idle_session_loses_its_memory(swarm: ToySwarm, client: Probe) -> None:
    time_passes = Shifted()
    swarm.clock = time_passes.clock()
    node = await swarm.serve(0, 4)
    line = await client.open(node, grant_of(client.identity, [hop_of(node)]))
    await line.hear()
    await line.say(step_of(0, random_tokens(5)))
    await until(lambda: node.engine.used_bytes == 5)
    time_passes.ahead_s = IDLE_S
    assert await line.hear() is None
    await until(lambda: node.engine.used_bytes == 0)


async def test_after_many_broken_lines_no_task_is_left(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(0, 4, limits=HopLimits(resume_s=0.05))
    probe = Probe()
    for number in range(20):
        line = await probe.open(node, grant_of(probe.identity, [hop_of(node)], session=bytes([number]) * 16))
        await line.hear()
        await line.say(step_of(0, session=bytes([number]) * 16))
        line.stream.cancel()
    await probe.close()
    await until(lambda: node.host.num_sessions == 0 and node.engine.used_bytes == 0)
    left = [
        task
        for task in asyncio.all_tasks()
        if task.get_name().startswith("session 0") or "MessageStream" in repr(task.get_coro())
    ]
    assert not left, left


# --- what is retained


@pytest.mark.parametrize("limit", [0, 400])
async def test_a_death_below_a_hop_that_dropped_its_history_changes_no_token(swarm: ToySwarm, limit: int) -> None:
    """The hop above it (here the client) replays instead."""
    spans = [(0, 1), (1, 3), (3, 4)]
    nodes = [await swarm.serve(*span, limits=HopLimits(retained_bytes=limit)) for span in spans]
    session, tokens = swarm.session(), random_tokens(40)
    before = [await ask(session, (), [1], token[None]) for token in tokens[:30]]
    for node in nodes:
        hops = node.host._hops
        assert hops is not None
        hops._bound_retained()
        assert sum(hop.down.retained.num_bytes for hop in hops._hops.values()) <= 8 * 16
    await swarm.serve(3, 4)
    await nodes[2].kill()
    after = [await ask(session, (), [1], token[None]) for token in tokens[30:]]
    assert torch.allclose(torch.cat(before + after), torch.stack(reference(list(tokens), spans)), atol=1e-6)
    assert session.replaced == 1 and nodes[1].engine.used_bytes == 40
    await session.close()


async def test_the_largest_history_is_dropped_first_and_no_more_than_needed(swarm: ToySwarm) -> None:
    first = await swarm.serve(0, 2, limits=HopLimits(retained_bytes=3_000))
    await swarm.serve(2, 4)
    sessions = [swarm.session(chunk_tokens=4) for _ in range(2)]
    for session, count in zip(sessions, (160, 60), strict=True):
        await ask(session, (), [count], random_tokens(count))
    hops = first.host._hops
    assert hops is not None
    assert sorted(hop.down.retained.num_bytes for hop in hops._hops.values()) == [60 * 16, 160 * 16]
    hops._bound_retained()
    assert sorted(hop.down.retained.num_bytes for hop in hops._hops.values()) == [8 * 4 * 16, 60 * 16]
    for session in sessions:
        await session.close()
