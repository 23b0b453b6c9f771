"""A client among hostile hops.

Their replies are not what was asked for, their messages not theirs to send, their losses without end.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import torch

from protocols import compression
from protocols.errors import InternalError, NoRouteError, PeerUnreachableError, SwarmError
from protocols.ids import Span
from protocols.inference import Attach, Expect, HopLost, Open, Reply, Step
from swarm.streams.message_stream import MessageStreamLimits
from tests.swarm.inference.probe import FakeHop, Line
from tests.swarm.inference.toy import WIDTH, ToySwarm, ask, hurry, random_tokens, reference, until

WHOLE = [(0, 4)]


async def lure(swarm: ToySwarm) -> FakeHop:
    """A hop over the whole model: the only one there is when a session opens."""
    fake = await FakeHop(Span(0, 4)).start()
    swarm.nodes.insert(0, fake)  # type: ignore[arg-type]
    return fake


async def first_step(fake: FakeHop) -> tuple[Line, Line, Step]:
    """What a client says to its only hop: the session line, the attach line, and the step it sent."""
    line, replies = await fake.lines.get(), await fake.attached.get()
    opening, attach = await line.hear(), await replies.hear()
    assert isinstance(opening, Open) and isinstance(attach, Attach)
    await line.say(Expect(session=opening.grant.session, epoch=opening.grant.epoch, step=0))
    step = await line.hear()
    assert isinstance(step, Step)
    return line, replies, step


WRONG = {
    "counts": Reply(session=bytes(16), epoch=0, step=0, counts=(2,), payload=compression.pack(torch.zeros(2, WIDTH))),
    "rows": Reply(session=bytes(16), epoch=0, step=0, counts=(1, 2), payload=compression.pack(torch.zeros(3, WIDTH))),
    "width": Reply(session=bytes(16), epoch=0, step=0, counts=(3,), payload=compression.pack(torch.zeros(3, 9))),
    "dtype": Reply(session=bytes(16), epoch=0, step=0, counts=(3,), payload=compression.pack(torch.zeros(3, WIDTH).half())),
    "nothing": Reply(session=bytes(16), epoch=0, step=0, counts=(), payload=compression.pack(torch.zeros(0, WIDTH))),
    "garbage": b"garbage",
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_reply_that_is_not_what_was_asked_for_costs_the_hop_its_place(swarm: ToySwarm, kind: str) -> None:
    fake = await lure(swarm)
    session, tokens = swarm.session(), random_tokens(3)
    asking = asyncio.create_task(ask(session, (), [3], tokens))
    _, replies, _ = await first_step(fake)
    honest = await swarm.serve(0, 4)
    await replies.say(WRONG[kind])
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), WHOLE)))
    assert session.replaced == 1 and session.route[0].peer == honest.identity.peer_id
    await session.close()


async def test_the_first_hop_cannot_answer_in_the_place_of_the_last(swarm: ToySwarm) -> None:
    swarm.wire_limits = MessageStreamLimits(linger_s=0.1)
    honest, fake = await swarm.serve(2, 4), await FakeHop(Span(0, 2)).start()
    swarm.nodes.insert(0, fake)  # type: ignore[arg-type]
    session = swarm.session()
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    line = await fake.lines.get()
    assert isinstance(await line.hear(), Open)
    forged = Reply(session=session.id, epoch=0, step=0, counts=(1,), payload=compression.pack(torch.zeros(1, WIDTH)))
    await line.say(forged, Expect(session=session.id, epoch=0, step=0))
    assert isinstance(await line.hear(), Step)  # so it has heard the reply as well
    assert not asking.done() and honest.engine.forwards == 0
    await line.say(forged)
    await session.close()
    with pytest.raises(PeerUnreachableError, match="closed"):
        await asking


async def test_losses_without_end_take_no_memory_and_do_not_stop_the_session(swarm: ToySwarm) -> None:
    fake = await lure(swarm)
    session, tokens = swarm.session(), random_tokens(2)
    asking = asyncio.create_task(ask(session, (), [2], tokens))
    line, _, _ = await first_step(fake)
    honest = await swarm.serve(0, 4)
    with contextlib.suppress(SwarmError):
        for number in range(500):
            await line.say(HopLost(session=session.id, epoch=number % 3, index=0, code="internal", message="!"))
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), WHOLE)))
    assert session._legs.losses.qsize() <= 1 and session.route[0].peer == honest.identity.peer_id
    await session.close()


async def test_of_an_epoch_only_the_first_loss_is_told_and_of_the_next_one_again(swarm: ToySwarm) -> None:
    """Losses of an epoch that has ended filled the queue, and pushed out the one that counted."""
    await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))
    leg, losses, gone = session._legs.current, session._legs.losses, PeerUnreachableError("gone")
    for _ in range(100):
        leg.lose(0, gone, leg.epoch)
        leg.lose(0, gone, leg.epoch - 1)
    assert losses.qsize() == 1
    leg.epoch += 1
    leg.lose(0, gone, leg.epoch)
    assert losses.qsize() == 2
    await session.close()


async def test_a_session_that_has_failed_looks_for_no_route_any_more(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))
    hurry(session, 0.2)
    await node.kill()
    with pytest.raises(NoRouteError):
        await ask(session, (), [1], random_tokens(1))
    await until(lambda: not session._legs.tasks)
    await session.close()


async def test_a_look_that_an_answer_or_a_new_route_has_overtaken_notes_nothing(
    swarm: ToySwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would name a place of the old route, and another peer is there now, or none."""
    await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))
    leg, gate, oldest = session._legs.current, asyncio.Event(), [1]

    async def slow_ask(num_hops: int, route: object) -> list[None]:
        await gate.wait()
        return [None]

    monkeypatch.setattr(leg, "ask", slow_ask)
    monkeypatch.setattr(leg, "_oldest", lambda: oldest[0])
    for change in ("answer", "route", ""):
        gate.clear()
        looking = asyncio.create_task(leg.look())
        await asyncio.sleep(0)
        oldest[0] += change == "answer"
        leg.epoch += change == "route"
        gate.set()
        verdict = await looking
        assert leg.verdict == (None if change else verdict)
    leg.epoch -= 1
    await session.close()


async def test_a_leg_that_is_let_go_while_it_opens_and_is_then_cancelled_keeps_no_wire(
    swarm: ToySwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))
    rival = session._legs._new()

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rival, "_attach_last", never)
    opening = asyncio.create_task(rival.install(session.route, "float32"))
    await asyncio.sleep(0)
    rival.let_go()
    await until(lambda: node.host.num_sessions == 2)
    opening.cancel()
    await asyncio.wait((opening,))
    await until(lambda: node.host.num_sessions == 1)
    assert rival.down.wire is None
    await session.close()


async def test_losses_far_apart_each_have_their_own_patience(swarm: ToySwarm) -> None:
    """Idle time between two deaths must not count as waiting for a route."""
    nodes = [await swarm.serve(0, 4), await swarm.serve(0, 4), await swarm.serve(0, 4)]
    session, tokens = swarm.session(route_timeout_s=30), random_tokens(2)
    first = await ask(session, (), [1], tokens[:1])
    for count in (1, 2):
        peer = session.route[0].peer
        doomed = next(node for node in nodes if node.identity.peer_id == peer)
        await doomed.kill()
        await until(lambda count=count: session.replaced == count)  # type: ignore[misc]
        if session._legs.lateness.outage.since_s is not None:
            session._legs.lateness.outage.since_s -= 100  # an hour passes, as it were
    second = await ask(session, (), [1], tokens[1:])
    assert torch.allclose(torch.cat([first, second]), torch.stack(reference(list(tokens), WHOLE)))
    await session.close()


async def test_a_fault_of_ours_in_a_repair_fails_the_step_and_does_not_hang_it(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    session._legs._router.find = broken  # type: ignore[method-assign, assignment]
    await node.kill()
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        async with asyncio.timeout(60):
            await ask(session, (), [1], random_tokens(1))
    await session.close()


async def test_a_closed_session_takes_no_step_and_opens_nothing(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    await session.close()
    await session.close()
    with pytest.raises(PeerUnreachableError, match="closed"):
        await ask(session, (), [1], random_tokens(1))
    assert node.host.num_sessions == 0


async def test_close_has_told_the_hops_when_it_returns(swarm: ToySwarm) -> None:
    """A command that ends right after would otherwise leave its sequences there for `resume_s`."""
    nodes = [await swarm.serve(0, 2), await swarm.serve(2, 4)]
    session = swarm.session()
    await ask(session, (), [6], random_tokens(6))
    await session.close()
    await swarm.pool.close()
    await until(lambda: not any(node.engine.used_bytes or node.host.num_sessions for node in nodes))


async def test_closing_while_a_step_waits_ends_the_step(swarm: ToySwarm) -> None:
    swarm.wire_limits = MessageStreamLimits(linger_s=0.1)  # the hop says nothing at all, not even goodbye
    await lure(swarm)
    session = swarm.session()
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await until(lambda: bool(session._pending.steps))
    await session.close()
    with pytest.raises(PeerUnreachableError, match="closed"):
        await asking
