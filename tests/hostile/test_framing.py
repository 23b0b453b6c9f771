"""A hop that is wrongly reported as lost is used again soon.

Accuser and accused are both avoided for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from protocols.ids import Span
from tests.hostile.liars import Accuser, Modest
from tests.swarm.inference.toy import ToyNode, ToySwarm, ask, fresh_seed, random_tokens, reference, until

HALVES = [(0, 2), (2, 4)]


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    fresh_seed()
    toys = Modest()
    yield toys
    await toys.stop()


async def accuse(swarm: ToySwarm, span: Span, **how: Any) -> Accuser:
    liar = await Accuser(span, **how).start()
    swarm.nodes.insert(0, liar)  # type: ignore[arg-type]
    return liar


def strikes(swarm: ToySwarm, node: Any) -> int:
    return swarm.router.experience.suspects.strikes(node.identity.peer_id, time.monotonic())


def is_avoided(swarm: ToySwarm, node: Any) -> bool:
    return swarm.router.experience.blame.is_avoided(node.identity.peer_id, time.monotonic())


async def answered(session: Any) -> None:
    tokens = random_tokens(4)
    async with asyncio.timeout(60):
        answer = await ask(session, (), [4], tokens)
    assert torch.allclose(answer, torch.stack(reference(list(tokens), HALVES)))


@pytest.mark.parametrize("code", ["peer_unreachable", "cache_full", "nonsense_from_above", "internal"])
async def test_the_accuser_of_honest_hops_is_out_at_its_second_word_at_the_latest(swarm: ToySwarm, code: str) -> None:
    liar, honest = await accuse(swarm, Span(0, 2), code=code), await swarm.serve(0, 2)
    accused = [await swarm.serve(2, 4), await swarm.serve(2, 4), await swarm.serve(2, 4)]
    session = swarm.session()
    await answered(session)
    assert 1 <= liar.accusations <= 2 and session.route[0].peer == honest.identity.peer_id
    await until(lambda: strikes(swarm, liar) > 0 or is_avoided(swarm, liar))
    assert not any(is_avoided(swarm, node) for node in accused) and not is_avoided(swarm, honest)
    again = swarm.session()
    await answered(again)
    assert liar.accusations <= 2 and again.replaced == 0
    await asyncio.gather(session.close(), again.close())


async def test_the_only_host_of_some_blocks_is_of_use_although_it_was_accused(swarm: ToySwarm) -> None:
    liar, only = await accuse(swarm, Span(0, 2)), await swarm.serve(2, 4)
    honest = await swarm.serve(0, 2)
    session = swarm.session()
    await answered(session)
    assert [hop.peer for hop in session.route] == [honest.identity.peer_id, only.identity.peer_id]
    assert liar.accusations and not is_avoided(swarm, only)
    await until(lambda: strikes(swarm, liar) == 1)
    assert strikes(swarm, only) == 0  # an answer came through it
    await session.close()


async def test_news_made_up_two_hops_above_costs_its_maker_not_the_hop_between(swarm: ToySwarm) -> None:
    """The first of three accuses the third. The second has passed on nothing of the kind, and can say so."""
    liar, honest = await accuse(swarm, Span(0, 1), names=2), await swarm.serve(0, 1)
    middle, end, other_end = await swarm.serve(1, 2), await swarm.serve(2, 4), await swarm.serve(2, 4)
    session = swarm.session()
    tokens = random_tokens(3)
    async with asyncio.timeout(60):
        answer = await ask(session, (), [3], tokens)
    assert torch.allclose(answer, torch.stack(reference(list(tokens), [(0, 1), (1, 2), (2, 4)])))
    assert session.route[0].peer == honest.identity.peer_id and session.route[1].peer == middle.identity.peer_id
    await until(lambda: strikes(swarm, liar) > 0)
    assert not any(is_avoided(swarm, node) for node in (middle, end, other_end))
    await session.close()


async def test_an_honest_accuser_whose_connection_to_an_honest_hop_broke_is_soon_used_again(swarm: ToySwarm) -> None:
    first, last, spare = await swarm.serve(0, 2), await swarm.serve(2, 4), await swarm.serve(2, 4)
    session = swarm.session()
    await answered(session)
    nodes: dict[str, ToyNode] = {node.identity.peer_id: node for node in (last, spare)}
    cut = nodes[session.route[1].peer]
    await first.pool.forget(cut.identity.peer_id)  # as if the network between the two had failed
    await until(lambda: session.replaced == 1)
    async with asyncio.timeout(60):
        await ask(session, (), [1], random_tokens(1))
    assert session.route[0].peer == first.identity.peer_id
    await until(lambda: not is_avoided(swarm, cut))
    later = swarm.session()
    await answered(later)
    assert later.route[0].peer == first.identity.peer_id and not is_avoided(swarm, first)
    await asyncio.gather(session.close(), later.close())


async def test_a_hop_that_is_really_dead_is_blamed_alone(swarm: ToySwarm) -> None:
    first, last = await swarm.serve(0, 2), await swarm.serve(2, 4)
    session = swarm.session()
    await answered(session)
    spare = await swarm.serve(2, 4)
    await last.kill()
    await until(lambda: session.replaced == 1)
    async with asyncio.timeout(60):
        await ask(session, (), [1], random_tokens(1))
    assert [hop.peer for hop in session.route] == [first.identity.peer_id, spare.identity.peer_id]
    assert is_avoided(swarm, last) and not is_avoided(swarm, first) and strikes(swarm, first) == 0
    await session.close()
