"""Hops that send invalid numbers are replaced; no token changes.

So are those that send what is not theirs to send, or ask without end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from protocols import compression
from protocols.defaults import WINDOW_STEPS
from protocols.errors import BadRequestError, InternalError, NonsenseError, SwarmError
from protocols.ids import Span
from protocols.inference import Expect, HopLost, Open, Reply, Reroute, Step, StepSpec
from swarm.inference.downstream import MAX_HISTORIES
from tests.swarm.inference.lines import SESSION
from tests.swarm.inference.probe import FakeHop, Line, Probe, absent_hop, grant_of, hop_of, nonsense, step_of
from tests.swarm.inference.toy import ToyNode, ToySwarm, ask, random_tokens, reference, until

THIRDS = [(0, 1), (1, 3), (3, 4)]


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    probe = Probe()
    yield probe
    await probe.close()


def broken(node: ToyNode, after: int) -> None:
    """From now on, and `after` more forwards, what the node computes is NaN."""
    own = node.engine.step

    def step(*arguments: object) -> Tensor:
        output: Tensor = own(*arguments)
        return output if node.engine.forwards <= after else output * float("nan")

    node.engine.step = step


@pytest.mark.parametrize("where", [0, 1, 2])
async def test_a_hop_that_computes_nan_is_replaced_and_the_session_goes_on(swarm: ToySwarm, where: int) -> None:
    nodes = [await swarm.serve(*span) for span in THIRDS]
    broken(nodes[where], after=5)
    tokens, session = random_tokens(12), swarm.session()
    before = [await ask(session, (), [1], token[None]) for token in tokens[:5]]
    spare = await swarm.serve(*THIRDS[where])
    after = [await ask(session, (), [1], token[None]) for token in tokens[5:]]
    assert torch.allclose(torch.cat([*before, *after]), torch.stack(reference(list(tokens), THIRDS)))
    assert session.replaced == 1 and session.route[where].peer == spare.identity.peer_id
    assert isinstance(swarm.router.experience.blame.last_cause, InternalError) and "NaN" in str(
        swarm.router.experience.blame.last_cause
    )
    await session.close()


@pytest.mark.parametrize("kind", nonsense())
async def test_nonsense_from_the_hop_above_loses_the_hop_and_says_who_sent_it(swarm: ToySwarm, probe: Probe, kind: str) -> None:
    node, above = await swarm.serve(2, 4), Probe()
    route = [absent_hop(0, 2, above.identity), hop_of(node)]
    line = await above.open(node, grant_of(probe.identity, route), 1)
    assert isinstance(await line.hear(), Expect)
    await line.say(step_of(0, nonsense()[kind]))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and (lost.index, lost.code) == (1, NonsenseError.code) and "hop above" in lost.message
    assert NonsenseError.try_another_peer and node.engine.forwards == 0
    await above.close()


async def test_of_two_neighbours_that_disagree_both_are_replaced(swarm: ToySwarm) -> None:
    """The first hop sends NaN without noticing: the second cannot prove it, so the client trusts neither for a while."""
    liar = await FakeHop(Span(0, 2)).start()
    swarm.nodes.append(liar)  # type: ignore[arg-type]
    second = await swarm.serve(2, 4)
    tokens, session = random_tokens(2), swarm.session()
    asking = asyncio.create_task(ask(session, (), [2], tokens))
    line = await liar.lines.get()
    opening = await line.hear()
    assert isinstance(opening, Open)
    spares = [await swarm.serve(0, 2), await swarm.serve(2, 4)]
    route = opening.grant.route
    below = Probe(liar.identity)
    down = await below.open(second, opening.grant, 1)
    assert isinstance(await down.hear(), Expect)
    await line.say(Expect(session=session.id, epoch=0, step=0))
    step = await line.hear()
    assert isinstance(step, Step)
    await down.say(step_of(0, torch.full((2, 4), float("nan")), session=session.id))
    lost = await down.hear()
    assert isinstance(lost, HopLost)
    await line.say(lost)
    assert torch.allclose(await asking, torch.stack(reference(list(tokens), [(0, 2), (2, 4)])))
    assert [hop.peer for hop in session.route] == [spare.identity.peer_id for spare in spares] and len(route) == 2
    await session.close()
    await below.close()


@pytest.mark.parametrize("kind", ["ids", "embeds"])
async def test_only_the_first_hop_takes_what_is_no_hidden_state(swarm: ToySwarm, probe: Probe, kind: str) -> None:
    node, above = await swarm.serve(2, 4), Probe()
    route = [absent_hop(0, 2, above.identity), hop_of(node)]
    line = await above.open(node, grant_of(probe.identity, route), 1)
    await line.hear()
    values = torch.zeros(1, dtype=torch.int32) if kind == "ids" else torch.zeros(1, 4)
    await line.say(_with_kind(step_of(0, values), kind))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.code == NonsenseError.code and kind in lost.message
    await above.close()


@pytest.mark.parametrize("result", ["logits", "top"])
async def test_a_node_without_the_ends_gives_no_logits_and_takes_no_ids(swarm: ToySwarm, probe: Probe, result: str) -> None:
    node = await swarm.serve(0, 4)
    grant = grant_of(probe.identity, [hop_of(node)])
    line = await probe.open(node, grant)
    await line.hear()
    await line.say(_with_kind(step_of(0, torch.zeros(1, dtype=torch.int32)), "ids", result))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.code == "span_not_served" and "--ends" in lost.message


def _with_kind(step: Step, kind: str, result: str = "hidden") -> Step:
    return replace(step, spec=StepSpec(kind=kind, result=result, top=3 if result == "top" else 0))


# --- words repeated without end


async def fed(line: Line, count: int) -> None:
    await line.say(*(step_of(number) for number in range(count)))


async def test_a_hop_below_gets_the_history_a_few_times_in_an_epoch(swarm: ToySwarm, probe: Probe) -> None:
    """Each copy costs a walk over everything that is kept; a new epoch begins to count anew."""
    node, below = await swarm.serve(0, 2), await FakeHop(Span(2, 4)).start()
    route = [hop_of(node), hop_of(below)]
    line = await probe.open(node, grant_of(probe.identity, route))
    await line.hear()
    to_node = await below.lines.get()
    assert isinstance(await to_node.hear(), Open)
    await fed(line, WINDOW_STEPS + 3)
    await until(lambda: node.engine.forwards == WINDOW_STEPS + 3)
    with contextlib.suppress(SwarmError):
        for _ in range(MAX_HISTORIES + 2):  # the first only says what is taken for granted on a first route
            await to_node.say(Expect(session=SESSION, epoch=0, step=0))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.index == 1 and "again and again" in lost.message
    await line.say(Reroute(grant=grant_of(probe.identity, route, epoch=1), index=0))
    again = await below.lines.get()
    assert isinstance(await again.hear(), Open)
    await again.say(Expect(session=SESSION, epoch=1, step=0))
    assert type(await again.hear()).__name__ == "History"
    await below.stop()


async def test_a_repeated_route_makes_a_hop_dial_once(swarm: ToySwarm, probe: Probe) -> None:
    node, below = await swarm.serve(0, 2), await FakeHop(Span(2, 4)).start()
    grant = grant_of(probe.identity, [hop_of(node), hop_of(below)])
    line = await probe.open(node, grant)
    assert isinstance(await line.hear(), Expect)
    await below.lines.get()
    await line.say(*(Reroute(grant=grant, index=0) for _ in range(20)))
    for _ in range(20):
        assert isinstance(await line.hear(), Expect)
    assert below.lines.empty()
    await below.stop()


async def test_a_client_s_own_nan_is_its_own_fault(swarm: ToySwarm) -> None:
    await swarm.serve(0, 4)
    session = swarm.session()
    with pytest.raises(BadRequestError, match="must be finite"):
        await session.step((), [1], compression.pack(torch.full((1, 4), float("nan"))))
    await session.close()


async def test_a_client_gives_up_a_first_hop_that_asks_for_the_history_without_end(swarm: ToySwarm) -> None:
    fake = await FakeHop(Span(0, 4)).start()
    swarm.nodes.append(fake)  # type: ignore[arg-type]
    tokens, session = random_tokens(WINDOW_STEPS + 3), swarm.session()

    async def answer() -> None:
        """Every step but the last with what it brought; then nothing but demands."""
        line, replies = await fake.lines.get(), await fake.attached.get()
        assert isinstance(await line.hear(), Open)
        await line.say(Expect(session=session.id, epoch=0, step=0))
        for number in range(len(tokens) - 1):
            step = await line.hear()
            assert isinstance(step, Step)
            await replies.say(Reply(session=session.id, epoch=0, step=number, counts=(1,), payload=step.payload))
        await line.hear()
        await swarm.serve(0, 4)
        with contextlib.suppress(SwarmError):
            for _ in range(MAX_HISTORIES + 1):
                await line.say(Expect(session=session.id, epoch=0, step=0))

    answering = asyncio.create_task(answer())
    for token in tokens[:-1]:
        await ask(session, (), [1], token[None])
    last = await ask(session, (), [1], tokens[-1:])
    assert torch.allclose(last[0], reference(list(tokens), [(0, 4)])[-1]) and session.replaced == 1
    assert "again and again" in str(swarm.router.experience.blame.last_cause)
    await answering
    await session.close()
