"""Nodes that take every session and keep its steps delay no client.

They answer hello like others. No honest node is taken for one.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.errors import NoRouteError
from protocols.ids import Span
from protocols.inference import History
from swarm.inference import histories
from swarm.inference.client.legs import MAX_RIVALS
from swarm.inference.client.pending import Pending
from swarm.inference.client.session import Session, SessionConfig
from swarm.inference.client.suspicion import Kind, Verdict
from swarm.inference.client.watch import BUSY_FACTOR, Watch
from swarm.inference.hop.hop import Hop
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStreamLimits
from tests.hostile.liars import LIES, Modest, Swallower
from tests.swarm.inference.toy import ToyNode, ToySwarm, ask, fresh_seed, random_tokens, reference, until

WHOLE, HALVES = [(0, 4)], [(0, 2), (2, 4)]
LATE_S = 0.3
"""Time until a reply is late, where the default of 3 s would only make the test longer."""


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    fresh_seed()
    toys = Modest()
    toys.wire_limits = MessageStreamLimits(linger_s=0.1)  # swallowers do not say goodbye
    yield toys
    await toys.stop()


async def swallow(swarm: ToySwarm, start: int, stop: int, lie: str) -> Swallower:
    """A swallower that looks better than any honest node."""
    liar = await Swallower(Span(start, stop), lie=lie).start()
    swarm.nodes.insert(0, liar)  # type: ignore[arg-type]
    return liar


def is_blamed(swarm: ToySwarm, node: Any) -> bool:
    now_s, peer = time.monotonic(), node.identity.peer_id
    return swarm.router.experience.blame.is_avoided(peer, now_s) or swarm.router.experience.suspects.strikes(peer, now_s) > 0


async def answered(session: Session, spans: list[tuple[int, int]], num_tokens: int = 5, within_s: float = 60.0) -> float:
    """Seconds until the right answer to a prompt of random tokens came."""
    tokens, began_s = random_tokens(num_tokens), time.monotonic()
    async with asyncio.timeout(within_s):
        answer = await ask(session, (), [num_tokens], tokens)
    assert torch.allclose(answer, torch.stack(reference(list(tokens), spans)))
    return time.monotonic() - began_s


async def test_two_nodes_that_swallow_steps_cost_seconds_with_a_user_s_settings(swarm: ToySwarm) -> None:
    """It took 364 s and ended with exit code 7, and the honest node was never tried."""
    liars = [await swallow(swarm, 0, 4, lie) for lie in ("has no such call", "busy")]
    honest = await swarm.serve(0, 4)
    session = Session(swarm.router, Links(swarm.pool), swarm.identity, SessionConfig())
    assert session._config.route_timeout_s == ROUTE_TIMEOUT_S
    took_s = await answered(session, WHOLE)
    assert [hop.peer for hop in session.route] == [honest.identity.peer_id]
    assert took_s > 2 and any(liar.steps for liar in liars)  # otherwise no liar was used
    await session.close()
    kept = {liar.address: liar.steps for liar in liars if liar.steps}
    again = Session(swarm.router, Links(swarm.pool), swarm.identity, SessionConfig())
    await answered(again, WHOLE)  # a liar that was not met yet costs its 3 s, the others are avoided
    assert all(liar.steps == kept[liar.address] for liar in liars if liar.address in kept)
    await again.close()


@pytest.mark.parametrize("lie", LIES)
async def test_a_swallower_is_passed_by_whatever_it_says(swarm: ToySwarm, lie: str) -> None:
    liar, honest = await swallow(swarm, 0, 4, lie), await swarm.serve(0, 4)
    session = swarm.session(stall_s=LATE_S)
    await answered(session, WHOLE)
    assert liar.steps and [hop.peer for hop in session.route] == [honest.identity.peer_id]
    assert is_blamed(swarm, liar) and not is_blamed(swarm, honest)
    assert bool(liar.asked) is (lie != "has no such call")
    await session.close()


@pytest.mark.parametrize("lies", [("busy", "idle"), ("sent it on", "busy"), ("idle", "sent it on")])
async def test_with_half_of_all_nodes_swallowing_an_answer_begins_and_honest_nodes_stay(
    swarm: ToySwarm, lies: tuple[str, str]
) -> None:
    liars = [await swallow(swarm, *span, lie) for span, lie in zip(HALVES, lies, strict=True)]
    honest = [await swarm.serve(*span) for span in HALVES]
    liars += [await swallow(swarm, *HALVES[0], lies[1])]
    honest += [await swarm.serve(*HALVES[1])]
    session = swarm.session(stall_s=LATE_S)
    await answered(session, HALVES)
    peers = {node.identity.peer_id for node in honest}
    assert {hop.peer for hop in session.route} <= peers and any(liar.steps for liar in liars)
    assert not any(is_blamed(swarm, node) for node in honest if node.identity.peer_id in {hop.peer for hop in session.route})
    await session.close()
    await until(lambda: not any(node.host.num_sessions for node in honest))  # what was tried beside has ended


async def test_an_honest_hop_below_a_swallower_is_not_blamed(swarm: ToySwarm) -> None:
    """Its word that nothing came is the proof, whether or not the swallower says that it has sent it on."""
    liar = await swallow(swarm, 0, 2, "idle")
    below, honest = await swarm.serve(2, 4), await swarm.serve(0, 2)
    session = swarm.session(stall_s=LATE_S)
    await answered(session, HALVES)
    assert [hop.peer for hop in session.route] == [honest.identity.peer_id, below.identity.peer_id]
    assert is_blamed(swarm, liar) and not is_blamed(swarm, below)
    await session.close()


async def test_a_hop_that_begins_to_swallow_in_the_middle_is_replaced_and_its_neighbours_keep_their_rows(
    swarm: ToySwarm,
) -> None:
    first, turncoat = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session, tokens = swarm.session(stall_s=LATE_S), random_tokens(9)
    answers = [await ask(session, (), [5], tokens[:5])]
    hop = next(iter(turncoat.host.hops._hops.values()))

    async def nothing(*_: object) -> None:
        """It takes the step, and that is all."""

    hop.sequences.take_step = nothing  # type: ignore[method-assign]
    spare = await swarm.serve(2, 4)
    before = first.engine.forwards
    answers += [await ask(session, (), [1], token[None]) for token in tokens[5:]]
    assert torch.allclose(torch.cat(answers), torch.stack(reference(list(tokens), HALVES)))
    assert [hop.peer for hop in session.route] == [first.identity.peer_id, spare.identity.peer_id]
    assert first.engine.forwards == before + 4 and session.replaced == 1  # nothing was computed again there
    assert is_blamed(swarm, turncoat) and not is_blamed(swarm, first)
    await session.close()


async def slow(node: ToyNode, seconds: float) -> None:
    """Each forward takes so long, on the device's thread."""
    forward = node.engine.step

    def step(*arguments: Any) -> Any:
        time.sleep(seconds)  # compute, not readiness
        return forward(*arguments)

    node.engine.step = step


async def test_a_slow_honest_node_is_not_lost(swarm: ToySwarm) -> None:
    """The only one there is, ten times slower than late: its session stays, and nothing is computed twice."""
    node = await swarm.serve(0, 4)
    await slow(node, 10 * LATE_S)
    session = swarm.session(stall_s=LATE_S)
    assert await answered(session, WHOLE) >= 10 * LATE_S
    assert session.replaced == 0 and node.engine.forwards == 1 and not is_blamed(swarm, node)
    await session.close()


async def test_slow_honest_replicas_race_and_the_first_answer_counts(swarm: ToySwarm) -> None:
    """The first one is left at work while the second is tried, and answers; the second never would have."""
    nodes = [await swarm.serve(0, 4), await swarm.serve(0, 4)]
    order, second, over = list[ToyNode](), threading.Event(), threading.Event()

    def held(node: ToyNode) -> Any:
        forward = node.engine.step

        def step(*arguments: Any) -> Any:
            order.append(node)
            if len(order) > 1:
                second.set()
            assert (over if len(order) > 1 else second).wait(60)
            return forward(*arguments)

        return step

    for node in nodes:
        node.engine.step = held(node)
    session = swarm.session(stall_s=LATE_S)
    await answered(session, WHOLE)
    assert session.replaced == 0 and len(order) == 2 and order[0] is not order[1] and order[1].engine.forwards == 0
    over.set()
    await session.close()
    await until(lambda: not any(node.host.num_sessions for node in nodes))


async def test_a_replay_over_a_slow_line_is_not_taken_for_swallowing(swarm: ToySwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the history is longer under way than a reply may be late: two looks found nothing received, and the hop was lost."""
    put, parts = Hop.put, list[int]()

    async def slow_put(hop: Hop, wire: Any, message: Any) -> None:
        if isinstance(message, History):
            parts.append(message.part)
            await asyncio.sleep(3 * LATE_S)
        await put(hop, wire, message)

    monkeypatch.setattr(Hop, "put", slow_put)
    monkeypatch.setattr(histories, "HISTORY_PART_TOKENS", 1)
    await swarm.serve(0, 2)
    doomed = await swarm.serve(2, 4)
    session, tokens = swarm.session(stall_s=LATE_S, line_bytes_s=150.0), random_tokens(13)
    for token in tokens[:12]:
        await ask(session, (), [1], token[None])
    await doomed.kill()
    spare = await swarm.serve(2, 4)
    answer = await ask(session, (), [1], tokens[12:])
    assert torch.allclose(answer[0], reference(list(tokens), HALVES)[-1])
    assert len(parts) >= 3 and session.replaced == 1 and not is_blamed(swarm, spare)
    await session.close()


async def test_an_answer_that_comes_while_another_route_is_looked_for_makes_it_needless(swarm: ToySwarm) -> None:
    """The new leg stayed for the whole session, and every later step was computed twice."""
    node = await swarm.serve(0, 4)
    await slow(node, 3 * LATE_S)
    session, find = swarm.session(stall_s=LATE_S), swarm.router.find
    looked, answered_ = asyncio.Event(), asyncio.Event()

    async def slow_find(route_timeout_s: float, *more: Any, **named: Any) -> Any:
        if route_timeout_s == 0.0:
            looked.set()
            await answered_.wait()
        return await find(route_timeout_s, *more, **named)

    swarm.router.find = slow_find  # type: ignore[method-assign]
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await looked.wait()
    other = await swarm.serve(0, 4)
    await asking
    answered_.set()
    await asyncio.sleep(0.1)
    assert not session._legs.rivals and session.replaced == 0 and not other.host.num_sessions
    await session.close()


async def test_no_more_rivals_than_three_are_kept(swarm: ToySwarm) -> None:
    liars = [await swallow(swarm, 0, 4, "busy") for _ in range(MAX_RIVALS + 3)]
    session = swarm.session(stall_s=0.05)
    most, asking = 0, asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    async with asyncio.timeout(120):  # each pause is twice the one before, and the first is longer on a busy machine
        while sum(liar.steps > 0 for liar in liars) < len(liars):
            await asyncio.sleep(0.01)
            most = max(most, len(session._legs.rivals))
    assert most == MAX_RIVALS
    for liar in liars:
        liar.lie = "idle"  # while all say that they compute, each pause is twice the one before
    await swarm.serve(0, 4)
    await asking
    assert not session._legs.rivals
    await session.close()


async def test_no_peer_is_tried_twice_before_all_others(swarm: ToySwarm) -> None:
    liars, opened = [await swallow(swarm, 0, 4, "idle") for _ in range(MAX_RIVALS + 4)], list[str]()
    for liar in liars:
        liar.on_open = functools.partial(opened.append, liar.address)
    session = swarm.session(stall_s=0.1)
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await until(lambda: len(opened) > len(liars))
    assert {*opened[: len(liars)]} == {liar.address for liar in liars}  # then the first ones once more
    await swarm.serve(0, 4)
    await asking
    await session.close()


async def test_a_leg_is_tried_sooner_while_others_are_stuck_and_later_while_they_compute(swarm: ToySwarm) -> None:
    await swallow(swarm, 0, 4, "idle")
    session = swarm.session(stall_s=LATE_S)
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    legs = session._legs
    await until(lambda: legs.current.verdict is not None)
    watch = Watch(legs, session._config, Pending())
    assert watch._pause_s(3.0) == 3.0  # no leg was tried beside it yet
    watch._num_tried = 1
    assert legs.current.is_stuck and watch._pause_s(3.0) == 1.0
    legs.rivals = [legs.current] * MAX_RIVALS
    assert watch._pause_s(3.0) == 3.0  # one of them has to end first
    legs.rivals = []
    legs.current.verdict = Verdict(Kind.BUSY, (0,))
    assert watch._pause_s(3.0) == 6.0
    await session.close()
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize("kind", Kind)
async def test_on_a_route_that_has_answered_only_a_hop_that_computes_has_five_times_longer(swarm: ToySwarm, kind: Kind) -> None:
    """A hop whose words changed from look to look was given the same, so it held a step for 15 s instead of 3."""
    await swarm.serve(0, 4)
    session = swarm.session(stall_s=60.0)
    await ask(session, (), [1], random_tokens(1))
    legs, tried = session._legs, list[Kind]()

    async def look() -> Verdict:
        return Verdict(kind, (0,))

    async def beside() -> None:
        tried.append(kind)

    legs.current.look, legs.try_beside = look, beside  # type: ignore[method-assign]
    legs.lateness.heard_s -= 2 * LATE_S
    await Watch(legs, session._config, Pending())._look(LATE_S)
    assert legs.current.has_answered and tried == ([] if kind is Kind.BUSY else [kind])
    await session.close()


async def test_a_hop_that_connects_slowly_to_the_next_one_keeps_nothing(swarm: ToySwarm) -> None:
    """It was taken for a swallower: two honest hops were suspected, and the sequences of one were given up, three times."""
    first, second = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session = swarm.session(stall_s=LATE_S)
    await ask(session, (), [1], random_tokens(1))
    spare, channel = await swarm.serve(2, 4), first.pool.channel

    async def slow_channel(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(3 * LATE_S)
        return await channel(*arguments, **named)

    first.pool.channel = slow_channel  # type: ignore[method-assign]
    await second.kill()
    await ask(session, (), [1], random_tokens(1))
    assert session.replaced == 1 and [hop.peer for hop in session.route] == [first.identity.peer_id, spare.identity.peer_id]
    assert not is_blamed(swarm, first) and not is_blamed(swarm, spare)
    await session.close()


async def test_a_step_of_many_bytes_has_the_time_that_a_slow_line_takes(swarm: ToySwarm) -> None:
    await swallow(swarm, 0, 4, "idle")
    session = swarm.session()
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await until(lambda: bool(session._pending.steps))
    (number, awaited), before_s = next(iter(session._pending.steps.items())), session._legs.late_s()
    session._pending.steps[number] = replace(awaited, num_bytes=awaited.num_bytes + 4_000_000)
    assert before_s < 3.0 + 4_000_000 / session._config.line_bytes_s <= session._legs.late_s()
    await session.close()
    asking.cancel()


async def test_on_a_route_that_has_answered_a_busy_hop_has_five_times_longer_and_no_more_than_the_silence(
    swarm: ToySwarm,
) -> None:
    """Others are tried beside it then; it is lost once the longest silence is over, whatever it says."""
    node, other = await swarm.serve(0, 4), None
    session = swarm.session(stall_s=LATE_S, silence_s=12 * LATE_S)
    await ask(session, (), [1], random_tokens(1))
    session._legs._usual_ms = 0.0  # on a busy machine a step of 40 ms would be late only after the longest silence
    hop, tried_s = next(iter(node.host.hops._hops.values())), list[float]()

    async def works(*_: object) -> None:
        hop.sequences.is_computing = True

    hop.sequences.take_step = works  # type: ignore[method-assign]
    try_beside, began_s = session._legs.try_beside, time.monotonic()

    async def beside() -> None:
        tried_s.append(time.monotonic() - began_s)
        await try_beside()  # there is no other way yet

    session._legs.try_beside = beside  # type: ignore[method-assign]
    asking = asyncio.create_task(ask(session, (), [1], random_tokens(1)))
    await until(lambda: bool(tried_s))
    assert tried_s[0] >= BUSY_FACTOR * LATE_S and not session.replaced and BUSY_FACTOR == 5
    await until(lambda: session._legs.repair.is_running)
    assert time.monotonic() - began_s >= 12 * LATE_S and is_blamed(swarm, node)
    other = await swarm.serve(0, 4)
    await asking
    assert [hop.peer for hop in session.route] == [other.identity.peer_id]
    await session.close()


async def test_if_all_swallow_the_user_hears_it(swarm: ToySwarm) -> None:
    await swallow(swarm, 0, 4, "idle")
    session = swarm.session(stall_s=0.1, route_timeout_s=0.5)
    with pytest.raises(NoRouteError, match=r"no reply for .* s, and it passes nothing on"):
        async with asyncio.timeout(60):
            await ask(session, (), [1], random_tokens(1))
    await session.close()


async def test_only_a_session_s_own_client_hears_how_far_it_is(swarm: ToySwarm) -> None:
    await swarm.serve(0, 4)
    session, outsider = swarm.session(), ToySwarm()
    await ask(session, (), [3], random_tokens(3))
    hop = session.route[0]
    mine = await Links(swarm.pool).progress(hop, session.id)
    assert (mine.epoch, mine.received, mine.computed, mine.sent, mine.is_busy) == (0, 1, 1, 1, False)
    assert (await Links(outsider.pool).progress(hop, session.id)).epoch == -1
    await session.close()
    await outsider.pool.close()
