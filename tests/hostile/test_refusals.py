"""A refusal of one hop is not believed for all nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from protocols.errors import BY_CODE, BadRequestError, ModelMismatchError, SwarmError
from protocols.ids import Span, short_peer
from swarm.inference.client import hearsay
from swarm.streams.message_stream import MessageStreamLimits
from tests.hostile.liars import Accuser, Modest, Refuser
from tests.swarm.inference.toy import ToySwarm, ask, fresh_seed, random_tokens, reference

WHOLE, HALVES = [(0, 4)], [(0, 2), (2, 4)]
ESCAPES = "\x1b[2J\x1b]0;owned\x07pay here\r\n" + "x" * 1_500


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    fresh_seed()
    toys = Modest()
    toys.wire_limits = MessageStreamLimits(linger_s=0.1)  # liars do not say goodbye
    yield toys
    await toys.stop()


async def refuse(swarm: ToySwarm, code: str = "bad_request", text: str = "go away", span: Span | None = None) -> Refuser:
    liar = await Refuser(span or Span(0, 4), code=code, text=text).start()
    swarm.nodes.insert(0, liar)  # type: ignore[arg-type]
    return liar


async def answered(session: Any, spans: list[tuple[int, int]]) -> None:
    tokens = random_tokens(4)
    async with asyncio.timeout(60):
        answer = await ask(session, (), [4], tokens)
    assert torch.allclose(answer, torch.stack(reference(list(tokens), spans)))


@pytest.mark.parametrize("code", [*BY_CODE, "made_up"])
async def test_one_hop_s_refusal_ends_nobody_s_request_whatever_its_class(swarm: ToySwarm, code: str) -> None:
    liar, honest = await refuse(swarm, code), await swarm.serve(0, 4)
    session = swarm.session()
    await answered(session, WHOLE)
    assert liar.refusals == 1 and [hop.peer for hop in session.route] == [honest.identity.peer_id]
    assert swarm.router.experience.blame.is_avoided(liar.identity.peer_id, time.monotonic())
    again = swarm.session()
    await answered(again, WHOLE)
    assert liar.refusals == 1 and again.replaced == 0  # its claims do not win again soon
    await asyncio.gather(session.close(), again.close())


async def test_liars_one_after_the_other_end_no_request_while_an_honest_one_is_left(swarm: ToySwarm) -> None:
    liars, honest = [await refuse(swarm, "model_not_supported") for _ in range(hearsay.AGREED - 1)], await swarm.serve(0, 4)
    session = swarm.session()
    await answered(session, WHOLE)
    assert sum(liar.refusals for liar in liars) >= 1 and session.route[0].peer == honest.identity.peer_id
    await session.close()


async def test_a_refusal_that_one_hop_makes_up_about_others_counts_as_one_word(swarm: ToySwarm) -> None:
    """The first hop says of each hop below it that it refuses; with another first hop, the same ones answer."""
    liar = await Accuser(Span(0, 2), code="bad_request", text="the hop below says no").start()
    swarm.nodes.insert(0, liar)  # type: ignore[arg-type]
    below = [await swarm.serve(2, 4) for _ in range(hearsay.AGREED + 1)]
    honest = await swarm.serve(0, 2)
    session = swarm.session()
    await answered(session, HALVES)
    assert liar.accusations >= 1 and session.route[0].peer == honest.identity.peer_id
    assert session.route[1].peer in {node.identity.peer_id for node in below}
    await session.close()


async def test_the_only_peer_s_refusal_is_raised_soon_quoted_and_by_name(swarm: ToySwarm) -> None:
    liar = await refuse(swarm, "model_mismatch", ESCAPES)
    liar.code = "bad_request"
    session = swarm.session(route_timeout_s=600)
    with pytest.raises(BadRequestError) as raised:
        async with asyncio.timeout(60):
            await ask(session, (), [1], random_tokens(1))
    text = str(raised.value)
    assert text.startswith(f"peer {short_peer(liar.identity.peer_id)} says: '") and "pay here" in text
    assert len(text) < 400 and text.isprintable()
    await session.close()


async def test_a_request_that_every_node_refuses_is_raised_and_the_next_one_is_answered(swarm: ToySwarm) -> None:
    """No honest node may be avoided by this client because the client asked for something impossible."""
    nodes = [await swarm.serve(0, 4) for _ in range(hearsay.AGREED + 1)]
    session = swarm.session(route_timeout_s=600)
    with pytest.raises(BadRequestError, match=r"peer .* says: 'hidden states must be finite"):
        async with asyncio.timeout(60):
            await ask(session, (), [1], torch.full((1, 4), float("nan")))
    later = swarm.session()
    await answered(later, WHOLE)
    assert sum(node.engine.forwards for node in nodes) == 1
    await asyncio.gather(session.close(), later.close())


async def test_what_the_client_knows_itself_is_said_before_anybody_is_asked(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session(hidden_size=4, vocab_size=9)
    with pytest.raises(BadRequestError, match="counts"):
        await ask(session, (), [2], random_tokens(3))
    with pytest.raises(BadRequestError, match="1 position for 3 tokens"):
        await ask(session, (), [3], random_tokens(3), positions=[1])
    assert not session.route and node.host.num_sessions == 0
    await session.close()


async def test_if_everybody_says_other_weights_patience_ends_it_and_the_text_says_whose_word_that_is(swarm: ToySwarm) -> None:
    """The grant names the digest that the nodes themselves announce: the client does not take over the class of their error."""
    liars = [await refuse(swarm, "model_mismatch", "other weights") for _ in range(2)]
    session = swarm.session(route_timeout_s=1)
    with pytest.raises(SwarmError, match=r"says: 'other weights'") as raised:
        async with asyncio.timeout(60):
            await ask(session, (), [1], random_tokens(1))
    assert all(liar.refusals for liar in liars) and not isinstance(raised.value, ModelMismatchError)
    await session.close()
