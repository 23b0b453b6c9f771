"""A client that hops try to deceive.

By invalid numbers, silence, accusations, and a close in the middle of an opening.
"""

from __future__ import annotations

import asyncio

import pytest
import torch

from protocols import compression
from protocols.errors import DeadlineError, NoRouteError, PeerUnreachableError
from protocols.ids import Span
from protocols.inference import Expect, HopLost, Open, Reply, Step
from tests.swarm.inference.probe import FakeHop
from tests.swarm.inference.toy import WIDTH, ToySwarm, ask, random_tokens, reference, until

WHOLE = [(0, 4)]
ALL_BLOCKS = Span(0, 4)


async def lure(swarm: ToySwarm, span: Span = ALL_BLOCKS) -> FakeHop:
    fake = await FakeHop(span).start()
    swarm.nodes.insert(0, fake)  # type: ignore[arg-type]
    return fake


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_reply_that_is_no_number_costs_the_hop_its_place(swarm: ToySwarm, value: float) -> None:
    """Sampling from NaN would end in a traceback of torch's, and greedy choice in token 0."""
    fake = await lure(swarm)
    session, tokens = swarm.session(), random_tokens(3)
    asking = asyncio.create_task(ask(session, (), [3], tokens))
    replies = await fake.attached.get()
    await until(lambda: bool(session._pending.steps))
    honest = await swarm.serve(0, 4)
    nonsense = torch.zeros(3, WIDTH)
    nonsense[1, 2] = value
    await replies.say(Reply(session=session.id, epoch=0, step=0, counts=(3,), payload=compression.pack(nonsense)))
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), WHOLE)))
    assert session.replaced == 1 and session.route[0].peer == honest.identity.peer_id
    await session.close()


async def test_hops_that_are_alive_and_say_nothing_are_replaced(swarm: ToySwarm) -> None:
    fake = await lure(swarm)
    session, tokens = swarm.session(stall_s=0.1, silence_s=0.5), random_tokens(2)
    asking = asyncio.create_task(ask(session, (), [2], tokens))
    line = await fake.lines.get()
    opening = await line.hear()
    assert isinstance(opening, Open)
    await line.say(Expect(session=session.id, epoch=0, step=1 << 30))  # it wants none of what the client has
    honest = await swarm.serve(0, 4)
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), WHOLE)))
    assert session.route[0].peer == honest.identity.peer_id
    assert isinstance(swarm.router.experience.blame.last_cause, DeadlineError)
    await session.close()


async def test_silence_without_a_replica_ends_in_a_typed_error(swarm: ToySwarm) -> None:
    await lure(swarm)
    session = swarm.session(stall_s=0.1, silence_s=0.6, route_timeout_s=0.5)
    with pytest.raises(NoRouteError, match="no reply"):
        async with asyncio.timeout(60):
            await ask(session, (), [1], random_tokens(1))
    await session.close()


async def test_the_last_hop_cannot_accuse_the_others(swarm: ToySwarm) -> None:
    first, fake = await swarm.serve(0, 2), await lure(swarm, Span(2, 4))
    session, tokens = swarm.session(), random_tokens(1)
    asking = asyncio.create_task(ask(session, (), [1], tokens))
    replies = await fake.attached.get()
    accused = HopLost(session=session.id, epoch=0, index=0, code="internal", message="it was the other one")
    await replies.say(accused, accused)
    await replies.say(Reply(session=session.id, epoch=0, step=0, counts=(1,), payload=compression.pack(tokens)))
    assert torch.equal(await asking, tokens)
    assert session.replaced == 0 and not swarm.router.experience.blame.is_avoided(first.identity.peer_id, 0)
    await session.close()


async def test_a_session_that_is_closed_while_it_opens_leaves_nothing_at_the_hops(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    reached, gate = asyncio.Event(), asyncio.Event()
    install = session._legs.current.install

    async def slow(*arguments: object) -> None:
        reached.set()
        await gate.wait()
        await install(*arguments)  # type: ignore[arg-type]

    session._legs.current.install = slow  # type: ignore[method-assign, assignment]
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await reached.wait()
    await session.close()
    gate.set()
    with pytest.raises(PeerUnreachableError, match="closed"):
        await asking
    await until(lambda: node.host.num_sessions == 0, 5)  # resume_s is 30: this is the word of the client
    assert not session._pending.steps and not session._legs.tasks


async def test_the_first_steps_of_a_first_route_wait_for_nobody_and_come_once(swarm: ToySwarm) -> None:
    """The hop's first word can only be that it wants the beginning. That it says so late brings nothing a second time."""
    fake = await lure(swarm)
    session, tokens = swarm.session(), random_tokens(4)
    asking = asyncio.create_task(ask(session, (), [3], tokens[:3]))
    line, replies = await fake.lines.get(), await fake.attached.get()
    assert [type(await line.hear()) for _ in range(2)] == [Open, Step]  # nothing has been said to the client yet
    await line.say(Expect(session=session.id, epoch=0, step=0))
    await replies.say(Reply(session=session.id, epoch=0, step=0, counts=(3,), payload=compression.pack(tokens[:3])))
    await asking
    asking = asyncio.create_task(ask(session, (), [1], tokens[3:]))
    second = await line.hear()
    assert isinstance(second, Step) and second.step == 1
    await replies.say(Reply(session=session.id, epoch=0, step=1, counts=(1,), payload=compression.pack(tokens[3:])))
    await asking
    await fake.stop()  # or the session's close waits for its word
    await session.close()


async def test_a_later_route_waits_for_the_hop_s_word(swarm: ToySwarm) -> None:
    dead = await lure(swarm)
    session, tokens = swarm.session(), random_tokens(2)
    asking = asyncio.create_task(ask(session, (), [2], tokens))
    await dead.attached.get()
    await until(lambda: bool(session._pending.steps))
    await dead.stop()
    swarm.nodes.remove(dead)  # type: ignore[arg-type]
    fake = await lure(swarm)
    line, replies = await fake.lines.get(), await fake.attached.get()
    assert isinstance(await line.hear(), Open)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await line.stream.receive()
    await line.say(Expect(session=session.id, epoch=1, step=0))
    step = await line.hear()
    assert isinstance(step, Step) and (step.epoch, step.step) == (1, 0)
    await replies.say(Reply(session=session.id, epoch=1, step=0, counts=(2,), payload=compression.pack(tokens)))
    await asking
    await fake.stop()  # or the session's close waits for its word
    await session.close()


async def test_the_loss_of_an_old_route_s_wire_is_not_the_new_first_hop_s(swarm: ToySwarm) -> None:
    """Both message streams of a dead hop break. The second may be noticed when the new route is chosen, its first hop not dialled."""
    await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [2], random_tokens(2))
    leg, losses = session._legs.current, session._legs.losses
    wire = leg.down.wire
    assert wire is not None
    leg.epoch += 1  # as `install` does, some iterations of the loop before it connects
    await leg._on_lost(wire, PeerUnreachableError("broke"))
    assert not losses.qsize()
    leg.epoch -= 1
    await leg._on_lost(wire, PeerUnreachableError("broke"))
    assert losses.qsize() == 1  # of the route that it belongs to, it is one
    await session.close()
