"""Sessions over real streams: ordered steps, and deaths that change nothing."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols import compression
from protocols.errors import CacheFullError, DeadlineError, NoRouteError
from protocols.ids import Span
from protocols.inference import WANT_ALL, Crop, Grant, Repeat, Reply, Rows
from swarm.inference.client import session as session_module
from swarm.inference.client.leg import Leg
from swarm.inference.client.session import Session, SessionConfig
from swarm.inference.hop.hops import HopLimits
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream
from tests.swarm.inference.toy import ToySwarm, ask, fresh_seed, hurry, random_tokens, reference, until

HALVES = [(0, 2), (2, 4)]


async def one_by_one(session: Session, tokens: Tensor) -> Tensor:
    return torch.cat([await ask(session, (), [1], token[None]) for token in tokens])


def expected(tokens: Tensor, spans: list[tuple[int, int]] = HALVES) -> Tensor:
    return torch.stack(reference(list(tokens), spans))


async def test_steps_of_one_token_go_through_every_hop_once(swarm: ToySwarm) -> None:
    first, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    tokens, session = random_tokens(12), swarm.session()
    assert torch.allclose(await one_by_one(session, tokens), expected(tokens))
    assert first.engine.forwards == last.engine.forwards == 12
    await session.close()


async def test_a_prompt_travels_in_chunks_and_only_what_is_wanted_comes_back(swarm: ToySwarm) -> None:
    first, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session = swarm.session(chunk_tokens=8)
    tokens = random_tokens(100)
    answer = await ask(session, (), [100], tokens, want=3)
    assert torch.allclose(answer, expected(tokens)[-3:])
    assert first.engine.forwards == last.engine.forwards == 13  # more prefill chunks than the window holds
    await session.close()


async def test_rows_of_different_lengths_and_row_operations(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    session = swarm.session(chunk_tokens=4)
    a, b, more = random_tokens(7), random_tokens(2), random_tokens(4)
    assert torch.allclose(await ask(session, (), [7, 2], torch.cat([a, b])), torch.cat([expected(a), expected(b)]))
    answer = await ask(session, (Rows((1, 0)), Repeat(2), Crop(1)), [1, 1, 1, 1], more, want=WANT_ALL)
    rows = [torch.cat([row[:-1], token[None]]) for row, token in zip((b, b, a, a), more, strict=True)]
    assert torch.allclose(answer, torch.stack([expected(row)[-1] for row in rows]))
    await session.close()


async def test_positions_of_the_caller_reach_every_hop(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    tokens, places, session = random_tokens(6), [3, 4, 5, 6, 9, 9], swarm.session(chunk_tokens=2)
    answer = await ask(session, (), [6], tokens, positions=places)
    assert torch.allclose(answer, torch.stack(reference(list(tokens), HALVES, places)))
    await session.close()


@pytest.mark.parametrize("victims", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
async def test_any_hops_may_die_between_steps(swarm: ToySwarm, victims: tuple[int, ...]) -> None:
    spans = [(0, 1), (1, 3), (3, 4)]
    nodes = [await swarm.serve(*span) for span in spans]
    tokens, session = random_tokens(30), swarm.session()
    before = await one_by_one(session, tokens[:15])
    for victim in victims:
        await swarm.serve(*spans[victim])
    for victim in victims:
        await nodes[victim].kill()
    after = await one_by_one(session, tokens[15:])
    assert torch.allclose(torch.cat([before, after]), expected(tokens, spans))
    assert session.replaced >= 1
    assert {hop.peer for hop in session.route}.isdisjoint(nodes[victim].identity.peer_id for victim in victims)
    await session.close()


@pytest.mark.parametrize("case", range(6))
async def test_deaths_at_random_moments_change_no_token(swarm: ToySwarm, case: int) -> None:
    """Steps, prefill chunks and row operations go on while hops die; what comes back is what an undisturbed swarm gives."""
    rng = random.Random(fresh_seed() + case)
    for _ in range(2):
        for span in HALVES:
            await swarm.serve(*span)
    session = swarm.session(chunk_tokens=4)
    rows, kills = [random_tokens(0), random_tokens(0)], 0

    async def kill_one_hop_of_the_route() -> None:
        nonlocal kills
        await asyncio.sleep(rng.random() * 0.01)  # not readiness: the moment of the death is what is random
        peer = rng.choice(session.route).peer
        doomed = next((node for node in swarm.nodes if node.identity.peer_id == peer), None)
        if doomed is None:  # died before, and the session has had no step since
            return
        swarm.nodes.remove(doomed)
        await swarm.serve(doomed.span.start, doomed.span.stop)
        await doomed.kill()
        kills += 1

    for _ in range(25):
        ops = rng.choice([(), (), (), (Rows((1, 0)),), (Rows((0, 0)),), (Rows((1, 1)),)]) if len(rows[0]) else ()
        for op in ops:
            rows = [rows[index] for index in op.indices]
        counts = [rng.choice([1, 1, 1, 9]), rng.choice([1, 1, 0, 5])]
        new = [random_tokens(count) for count in counts]
        rows = [torch.cat([row, piece]) for row, piece in zip(rows, new, strict=True)]
        killing = asyncio.create_task(kill_one_hop_of_the_route()) if session.route and rng.random() < 0.4 else None
        answer = await ask(session, ops, counts, torch.cat(new))
        truth = torch.cat([expected(row)[len(row) - count :] for row, count in zip(rows, counts, strict=True) if count])
        assert torch.allclose(answer, truth, atol=1e-6)
        if killing is not None:
            await killing
    assert kills and session.replaced
    await session.close()


async def test_without_a_spare_the_error_names_the_blocks_and_what_would_help(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    last = await swarm.serve(2, 4)
    session = swarm.session()
    await ask(session, (), [1], random_tokens(1))
    hurry(session, 1.5)
    await last.kill()
    with pytest.raises(NoRouteError, match=r"blocks 2:4.*swarm node toy --blocks 2:4"):
        await ask(session, (), [1], random_tokens(1))
    await session.close()


async def test_the_same_call_goes_on_when_a_node_joins_in_time(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    last = await swarm.serve(2, 4)
    tokens, session = random_tokens(8), swarm.session(route_timeout_s=30)
    before = await one_by_one(session, tokens[:7])
    await last.kill()
    waiting = asyncio.create_task(ask(session, (), [1], tokens[7:]))
    await asyncio.wait((waiting,), timeout=0.5)
    assert not waiting.done()
    await swarm.serve(2, 4)
    assert torch.allclose(torch.cat([before, await waiting]), expected(tokens))
    await session.close()


async def test_full_memory_is_refused_and_a_replica_takes_over(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    small = await swarm.serve(2, 4, limit_tokens=5)
    tokens, session = random_tokens(8), swarm.session()
    before = await one_by_one(session, tokens[:5])
    await swarm.serve(2, 4)
    assert torch.allclose(torch.cat([before, await one_by_one(session, tokens[5:])]), expected(tokens))
    assert session.replaced == 1
    assert isinstance(swarm.router.experience.blame.last_cause, CacheFullError)
    await session.close()
    assert small.engine.used_bytes == 0


class SlowToDial(Links):
    """Dials of a new route take their time: whatever the old route's hops say is heard before."""

    async def open(self, grant: Grant, *arguments: Any) -> MessageStream:
        if grant.epoch:
            await asyncio.sleep(0.2)
        return await super().open(grant, *arguments)


async def test_the_end_of_a_hop_left_out_is_not_taken_for_a_loss_of_the_new_one(swarm: ToySwarm) -> None:
    small = await swarm.serve(0, 4, limit_tokens=3)
    tokens, session = (
        random_tokens(6),
        Session(swarm.router, SlowToDial(swarm.pool), swarm.identity, SessionConfig(route_timeout_s=60)),
    )
    before = await one_by_one(session, tokens[:3])
    await swarm.serve(0, 4)
    assert torch.allclose(torch.cat([before, await one_by_one(session, tokens[3:])]), expected(tokens, [(0, 4)]))
    assert session.replaced == 1 and isinstance(swarm.router.experience.blame.last_cause, CacheFullError)
    await session.close()
    await until(lambda: small.engine.used_bytes == 0)


class SlowToGiveUp(Links):
    """A dial of a new route ends a while after it was cancelled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_dialling, self.has_ended = asyncio.Event(), False

    async def open(self, grant: Grant, *arguments: Any) -> MessageStream:
        if not grant.epoch:
            return await super().open(grant, *arguments)
        try:
            self.is_dialling.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)  # the end itself takes so long
            self.has_ended = True
        raise AssertionError


async def test_close_awaits_the_end_of_a_repair(swarm: ToySwarm) -> None:
    doomed, links = await swarm.serve(0, 4), SlowToGiveUp(swarm.pool)
    session = Session(swarm.router, links, swarm.identity, SessionConfig(route_timeout_s=60))
    await ask(session, (), [1], random_tokens(1))
    await swarm.serve(0, 4)
    await doomed.kill()
    await asyncio.wait_for(links.is_dialling.wait(), 60)
    await session.close()
    assert links.has_ended


class FailsAfterAReply(Session):
    """Fails after each reply, before the caller that waits for it goes on."""

    def _on_reply(self, leg: Leg, reply: Reply) -> None:
        super()._on_reply(leg, reply)
        self._legs.end(NoRouteError("no peer is left"))


async def test_a_prefill_chunk_that_is_sent_after_a_failure_raises_it(swarm: ToySwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WINDOW_STEPS", 1)  # so that no other prefill chunk in flight raises it
    node = await swarm.serve(0, 4)
    session = FailsAfterAReply(swarm.router, Links(swarm.pool), swarm.identity, SessionConfig(chunk_tokens=4))
    async with asyncio.timeout(60):
        with pytest.raises(NoRouteError, match="no peer is left"):
            await ask(session, (), [8], random_tokens(8))
    assert node.engine.forwards == 1
    await session.close()


async def test_closing_returns_all_memory_along_the_chain(swarm: ToySwarm) -> None:
    nodes = [await swarm.serve(0, 2), await swarm.serve(2, 4)]
    sessions = [swarm.session() for _ in range(5)]
    for session in sessions:
        await ask(session, (), [6], random_tokens(6))
    assert all(node.engine.used_bytes == 30 for node in nodes)
    for session in sessions:
        await session.close()
    await until(lambda: not any(node.engine.used_bytes or node.host.num_sessions for node in nodes))


async def test_a_vanished_client_frees_memory_after_resume_s(swarm: ToySwarm) -> None:
    limits = HopLimits(resume_s=0.5)
    nodes = [await swarm.serve(0, 2, limits=limits), await swarm.serve(2, 4, limits=limits)]
    session = swarm.session()
    await ask(session, (), [6], random_tokens(6))
    await session._legs.stop()  # a dead process repairs nothing …
    await swarm.pool.close()  # … its connections break, and no Close is sent
    await until(lambda: not any(node.engine.used_bytes for node in nodes))


async def test_chunks_of_one_prompt_are_in_flight_on_several_hops_at_once(swarm: ToySwarm) -> None:
    """The last hop holds its first prefill chunk until the first hop has computed its third: without overlap this would never end."""
    first, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    third_chunk, step_of_first, step_of_last = threading.Event(), first.engine.step, last.engine.step

    def counting(*args: Any) -> Tensor:
        output: Tensor = step_of_first(*args)
        if first.engine.forwards == 3:
            third_chunk.set()
        return output

    def waiting(*args: Any) -> Tensor:
        assert third_chunk.wait(60), "the first hop waited for the last one"
        output: Tensor = step_of_last(*args)
        return output

    first.engine.step, last.engine.step = counting, waiting
    tokens, session = random_tokens(40), swarm.session(chunk_tokens=8)
    assert torch.allclose(await ask(session, (), [40], tokens), expected(tokens))
    await session.close()


async def test_an_idle_session_loses_its_memory_and_goes_on_by_a_replay(swarm: ToySwarm) -> None:
    limits = HopLimits(idle_s=0.3)
    nodes = [await swarm.serve(0, 2, limits=limits), await swarm.serve(2, 4, limits=limits)]
    tokens, session = random_tokens(9), swarm.session(route_timeout_s=30)
    before = await one_by_one(session, tokens[:6])
    await until(lambda: not any(node.engine.used_bytes for node in nodes))
    assert torch.allclose(torch.cat([before, await one_by_one(session, tokens[6:])]), expected(tokens))
    await session.close()


async def test_concurrent_sessions_share_forwards(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    sessions = [swarm.session() for _ in range(8)]
    tokens = [random_tokens(20) for _ in sessions]
    answers = await asyncio.gather(*(one_by_one(session, row) for session, row in zip(sessions, tokens, strict=True)))
    for answer, row in zip(answers, tokens, strict=True):
        assert torch.allclose(answer, expected(row, [(0, 4)]))
    assert node.host.runner.largest_batch > 1 and node.host.runner.num_forwards < 160
    for session in sessions:
        await session.close()


async def test_a_step_that_waited_too_long_goes_to_a_replica(swarm: ToySwarm) -> None:
    """The first node is held up for longer than the step's budget; the second answers, and nothing is computed twice."""
    held = await swarm.serve(0, 4)
    tokens, session = random_tokens(3), swarm.session()
    before = await one_by_one(session, tokens[:2])
    hurry(session, 2.5)
    entered, release, step_of_held = threading.Event(), threading.Event(), held.engine.step

    def held_step(*args: object) -> object:
        entered.set()
        return step_of_held(*args) if release.wait(60) else None

    held.engine.step = held_step
    blocker = swarm.session()
    held_up = asyncio.create_task(ask(blocker, (), [1], random_tokens(1)))
    await until(entered.is_set)
    spare = await swarm.serve(0, 4)
    late = asyncio.create_task(ask(session, (), [1], tokens[2:]))
    await until(lambda: len(held.host.runner.queue.waiting) == 1)
    await asyncio.wait((late,), timeout=2.7)  # the budget itself, not readiness
    release.set()
    assert torch.allclose(torch.cat([before, await late]), expected(tokens, [(0, 4)]))
    assert isinstance(swarm.router.experience.blame.last_cause, DeadlineError) and spare.engine.forwards > 0
    await held_up
    await asyncio.gather(session.close(), blocker.close())


async def test_one_client_cannot_fill_a_node(swarm: ToySwarm) -> None:
    limits = HopLimits(max_sessions_per_client=2)
    node = await swarm.serve(0, 4, limits=limits)
    mine = [swarm.session() for _ in range(2)]
    for session in mine:
        await ask(session, (), [1], random_tokens(1))
    greedy = swarm.session(route_timeout_s=0.5)
    with pytest.raises(NoRouteError, match="limit of one client"):
        await ask(greedy, (), [1], random_tokens(1))
    other = ToySwarm()
    other.nodes.append(node)
    outsider = other.session()
    assert (await ask(outsider, (), [1], random_tokens(1))).shape == (1, 4)
    await asyncio.gather(greedy.close(), outsider.close(), *(session.close() for session in mine))
    await other.pool.close()


async def test_every_hop_says_how_long_it_had_a_step(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    session = swarm.session(chunk_tokens=8)
    times = []
    for count in (20, 1):
        output = await session.step((), (count,), compression.pack(random_tokens(count)))
        assert output.time is not None
        times.append(output.time)
    prompt, later = times
    assert [hop.index for hop in prompt.hops] == [0, 1] * 3 and [hop.index for hop in later.hops] == [0, 1]
    assert [hop.span for hop in later.route] == [Span(0, 2), Span(2, 4)]
    assert prompt.route_ms > later.route_ms and (prompt.num_tokens, later.num_tokens) == (20, 1)
    for hop in (*prompt.hops, *later.hops):
        assert 0 < hop.compute_ms < hop.total_ms and 0 <= hop.queue_ms < hop.total_ms
    assert sum(hop.total_ms for hop in later.hops) < later.wait_ms
    await session.close()


async def test_a_step_that_waits_for_another_one_says_so(swarm: ToySwarm) -> None:
    held = await swarm.serve(0, 4)
    first, second = swarm.session(), swarm.session()
    entered, release, step_of_held = threading.Event(), threading.Event(), held.engine.step

    def held_step(*args: object) -> object:
        entered.set()
        return step_of_held(*args) if release.wait(60) else None

    held.engine.step = held_step
    blocker = asyncio.create_task(first.step((), (1,), compression.pack(random_tokens(1))))
    await until(entered.is_set)
    late = asyncio.create_task(second.step((), (1,), compression.pack(random_tokens(1))))
    await until(lambda: len(held.host.runner.queue.waiting) == 1)
    await asyncio.sleep(2)  # the time that is measured: longer than anything else here takes on a busy machine
    release.set()
    times = [output.time.hops[0] for output in (await blocker, await late) if output.time]
    assert times[0].compute_ms > 1_900 > times[0].queue_ms and times[1].queue_ms > 1_900 > times[1].compute_ms
    await asyncio.gather(first.close(), second.close())


@pytest.mark.parametrize("num_turns", range(4))
async def test_a_close_that_is_cancelled_ends_the_session_all_the_same(swarm: ToySwarm, num_turns: int) -> None:
    """Its caller is cancelled once more, or just when the answer is complete; else hops hold the sequences until they are idle for long."""
    first, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session = swarm.session()
    await ask(session, (), [3], random_tokens(3))
    closing = asyncio.create_task(session.close())
    for _ in range(num_turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    assert closing.cancelled() or num_turns > 1
    if not num_turns:  # it had not begun
        await session.close()
    await until(lambda: not first.host.num_sessions and not last.host.num_sessions)
