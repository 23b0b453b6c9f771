"""Forks of sessions: hops copy the sequences, or replay them.

Hops that still hold the sequences copy them. The two sessions are then independent.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from protocols.errors import PeerUnreachableError
from protocols.inference import Crop, Expect, Fork, Open, Repeat
from protocols.units import Blocks
from swarm.inference.client.session import Session
from tests.swarm.inference.probe import Probe, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, reference, until

HALVES = [(0, 2), (2, 4)]


@pytest.fixture
async def swarm(swarm: ToySwarm) -> ToySwarm:
    """With two nodes."""
    for span in HALVES:
        await swarm.serve(*span)
    return swarm


def expected(tokens: Tensor) -> Tensor:
    return torch.stack(reference(list(tokens), HALVES))


async def prompted(swarm: ToySwarm, tokens: Tensor) -> Session:
    session = swarm.session(chunk_tokens=4)
    await ask(session, (), [len(tokens)], tokens)
    return session


def forwards(swarm: ToySwarm) -> list[int]:
    return [node.engine.forwards for node in swarm.nodes]


async def close(*sessions: Session) -> None:
    for session in sessions:
        await session.close()


async def test_hops_copy_the_rows_of_a_session_that_stands_still(swarm: ToySwarm) -> None:
    start, new, other = random_tokens(50), random_tokens(3), random_tokens(3)
    session = await prompted(swarm, start)
    twin = await session.fork()
    before = forwards(swarm)
    assert torch.allclose(await ask(twin, (), [3], new), expected(torch.cat([start, new]))[-3:])
    assert forwards(swarm) == [count + 1 for count in before]  # nothing but the new tokens was computed
    assert torch.allclose(await ask(session, (), [3], other), expected(torch.cat([start, other]))[-3:])
    assert [hop.peer for hop in twin.route] == [hop.peer for hop in session.route]
    again = await twin.fork()  # a fork of a fork, and of both of its sequences
    doubled = await ask(again, (Crop(2), Repeat(2)), [1, 1], other[:2])
    rows = [torch.cat([start, new[:1], token[None]]) for token in other[:2]]
    assert torch.allclose(doubled, torch.stack([expected(row)[-1] for row in rows]))
    await close(session, twin, again)
    await until(lambda: not any(node.engine.used_bytes for node in swarm.nodes))


async def test_a_session_that_has_gone_on_is_replayed_as_it_was(swarm: ToySwarm) -> None:
    start, new, other = random_tokens(50), random_tokens(3), random_tokens(3)
    session = await prompted(swarm, start)
    twin = await session.fork()
    await ask(session, (), [3], other)
    before = forwards(swarm)
    assert torch.allclose(await ask(twin, (), [3], new), expected(torch.cat([start, new]))[-3:])
    assert all(now > count + 1 for now, count in zip(forwards(swarm), before, strict=True))
    await close(session, twin)


async def test_first_tokens_are_copied_while_their_session_goes_on(swarm: ToySwarm) -> None:
    """In the middle of its prompt, and of its answer."""
    start, others = random_tokens(200), [random_tokens(3) for _ in range(6)]
    session = swarm.session(chunk_tokens=16)
    prompt = asyncio.create_task(ask(session, (), [200], start))
    assert await session.has_answered(40)
    assert not prompt.done()
    twins = [await session.fork(40)]
    assert torch.allclose((await ask(twins[0], (), [3], others[0])), expected(torch.cat([start[:40], others[0]]))[-3:])
    said = [await prompt]
    for new in others[1:]:
        twins.append(await session.fork(150))
        said.append(await ask(session, (), [1], new[:1]))  # the session is further than at the fork
        answer, more = await asyncio.gather(ask(twins[-1], (), [3], new), ask(session, (), [2], new[1:]))
        said.append(more)
        assert torch.allclose(answer, expected(torch.cat([start[:150], new]))[-3:])
    assert all(twin.is_fork_taken for twin in twins)
    computed = 200 + 5 * 3 + 6 * 3
    await close(session, *twins)
    assert torch.allclose(torch.cat(said), expected(torch.cat([start, *others[1:]])))
    assert [node.engine.num_computed for node in swarm.nodes] == [computed] * 2


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_fork_of_first_tokens_survives_deaths(swarm: ToySwarm, victim: int) -> None:
    """The step with which it begins is not the one at which its hops were."""
    start, new = random_tokens(60), random_tokens(6)
    session = swarm.session(chunk_tokens=16)
    await ask(session, (), [60], start)
    twin = await session.fork(30)
    for token in new:
        await ask(session, (), [1], token[None])
    outputs = [await ask(twin, (), [3], new[:3])]
    assert twin.is_fork_taken
    await swarm.serve(*HALVES[victim])
    await swarm.nodes[victim].kill()
    outputs += [await ask(twin, (), [3], new[3:])]
    assert twin.replaced == 1
    assert torch.allclose(torch.cat(outputs), expected(torch.cat([start[:30], new]))[-6:])
    await close(session, twin)


async def test_tokens_that_will_not_come_are_not_waited_for(swarm: ToySwarm) -> None:
    session = await prompted(swarm, random_tokens(20))
    waiting = [asyncio.create_task(session.has_answered(count)) for count in (20, 21, 22)]
    assert await waiting[0]
    waiting[1].cancel()
    await session.close()
    assert await waiting[2] is False
    with pytest.raises(PeerUnreachableError, match="closed"):
        await session.fork(10)


async def test_one_that_was_closed_is_replayed(swarm: ToySwarm) -> None:
    start, new = random_tokens(20), random_tokens(3)
    session = await prompted(swarm, start)
    twin = await session.fork()
    await session.close()
    assert torch.allclose(await ask(twin, (), [3], new), expected(torch.cat([start, new]))[-3:])
    await close(twin)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("is_opened", [False, True])
async def test_a_fork_survives_deaths(swarm: ToySwarm, victim: int, is_opened: bool) -> None:
    """Before its first step (one hop copies, the other is replayed), and after it."""
    start, new = random_tokens(30), random_tokens(12)
    session = await prompted(swarm, start)
    twin = await session.fork()
    outputs = [await ask(twin, (), [1], token[None]) for token in new[: 6 * is_opened]]
    await swarm.serve(*HALVES[victim])
    await swarm.nodes[victim].kill()
    outputs += [await ask(twin, (), [1], token[None]) for token in new[6 * is_opened :]]
    assert torch.allclose(torch.cat(outputs), expected(torch.cat([start, new]))[-12:])
    assert torch.allclose(await ask(session, (), [12], new), expected(torch.cat([start, new]))[-12:])
    await close(session, twin)


async def test_a_fork_is_no_way_to_the_rows_of_somebody_else(swarm: ToySwarm) -> None:
    """Of another client's session, of one at another step, of unknown ones: the hop says that it holds nothing."""
    node = await swarm.serve(0, 4)
    owner, outsider = Probe(), Probe()
    route = [replace(hop_of(node), unit=Blocks(0, 4))]
    line = await owner.open(node, grant_of(owner.identity, route))
    assert await line.hear() == Expect(session=step_of(0).session, epoch=0, step=0)
    await line.say(step_of(0, random_tokens(5)))
    await until(lambda: node.engine.used_bytes == 5)
    heard = []
    for number, (probe, session, step) in enumerate([(outsider, b"s", 1), (owner, b"s", 2), (owner, b"x", 1), (owner, b"s", 1)]):
        grant = grant_of(probe.identity, route, session=bytes([number]) * 16)
        fork = Fork(session=replace(step_of(0, session=session * 16)).session, step=step)
        other = await probe.line(node)
        await other.say(Open(grant=grant, index=0, dtype="float32", fork=fork))
        answer = await other.hear()
        assert isinstance(answer, Expect)
        heard.append(answer.step)
    assert heard == [0, 0, 0, 1]
    assert node.engine.used_bytes == 5 + 5
    await owner.close()
    await outsider.close()
