"""A hop among hostile neighbours.

Tested: what it refuses, what it never computes twice, and whose message counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import torch

from protocols import compression
from protocols.errors import BadRequestError, SwarmError, UnauthenticatedError
from protocols.ids import Span
from protocols.inference import Attach, Close, Crop, Expect, HopLost, Op, Open, Repeat, Reply, Reroute, Rows
from tests.swarm.inference.lines import SESSION, WHOLE, num_sessions, opened, reply_of
from tests.swarm.inference.probe import FakeHop, Probe, absent_hop, grant_of, hop_of, nonsense, step_of
from tests.swarm.inference.toy import WIDTH, ToyNode, ToySwarm, random_tokens, reference, until

# --- steps


async def test_a_repeated_step_is_answered_again_and_never_computed_twice(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    tokens = random_tokens(3)
    steps = [step_of(number, tokens[number : number + 1]) for number in range(3)]
    await line.say(*steps)
    first = [await reply_of(replies) for _ in steps]
    await line.say(steps[1], steps[0], steps[1])
    assert [await reply_of(replies) for _ in range(3)] == [first[1], first[0], first[1]]
    assert node.engine.forwards == 3 and node.engine.used_bytes == 3
    values = torch.cat([compression.unpack(reply.payload) for reply in first])
    assert torch.allclose(values, torch.stack(reference(list(tokens), WHOLE)))


async def test_a_gap_is_answered_once_with_what_is_wanted(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0))
    await reply_of(replies)
    await line.say(step_of(3), step_of(4), step_of(1), step_of(3))
    assert [await line.hear(), await line.hear()] == [Expect(session=SESSION, epoch=0, step=number) for number in (1, 2)]
    assert (await reply_of(replies)).step == 1 and node.engine.forwards == 2


async def test_steps_of_another_epoch_are_dropped(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0, epoch=1), step_of(0, torch.ones(1, WIDTH)))
    assert compression.unpack((await reply_of(replies)).payload).tolist() == [reference([torch.ones(WIDTH)], WHOLE)[0].tolist()]
    assert node.engine.forwards == 1


@pytest.mark.parametrize("kind", nonsense())
async def test_hidden_states_that_make_no_sense_are_refused_before_they_are_cached(
    client: Probe, node: ToyNode, kind: str
) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0), step_of(1, nonsense()[kind]))
    await reply_of(replies)
    lost = await line.hear()
    assert isinstance(lost, HopLost) and (lost.index, lost.code) == (0, "bad_request") and "hidden states must be" in lost.message
    await until(lambda: node.engine.used_bytes == 0)
    assert node.engine.forwards == 1


@pytest.mark.parametrize(
    ("ops", "counts", "says"),
    [
        ((), [1, 1], "1 sequence, the step brings counts for 2"),
        ((Repeat(3),), [1, 1], "3 sequences, the step brings counts for 2"),
        ((Crop(4),), [2], "cannot crop 4 tokens of a sequence that has 3"),
        ((Rows((1,)),), [2], "indices of sequences must be below 1"),
        ((Repeat(1_024), Repeat(1_024)), [2], "at most 1024 sequences"),
    ],
)
async def test_operations_that_do_not_fit_lose_the_session_and_leak_nothing(
    client: Probe, node: ToyNode, ops: tuple[Op, ...], counts: list[int], says: str
) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0, random_tokens(3)), step_of(1, random_tokens(2), ops=ops, counts=counts))
    await reply_of(replies)
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.code == "bad_request" and says in lost.message
    assert node.engine.used_bytes == 0
    other = Probe()  # and the node serves on
    line, replies = await opened(other, node)
    await line.say(step_of(0))
    await reply_of(replies)
    await other.close()


@pytest.mark.parametrize("message", ["expect", "lost", "reply", "open", "attach"])
async def test_the_hop_above_may_not_say_what_is_for_others_to_say(client: Probe, node: ToyNode, message: str) -> None:
    line, _ = await opened(client, node)
    grant = grant_of(client.identity, [hop_of(node)])
    words = {
        "expect": Expect(session=SESSION, epoch=0, step=0),
        "lost": HopLost(session=SESSION, epoch=0, index=0, code="x", message=""),
        "reply": Reply(session=SESSION, epoch=0, step=0, counts=(1,), payload=compression.pack(random_tokens(1))),
        "open": Open(grant=grant, index=0, dtype="float32"),
        "attach": Attach(grant=grant, step=0),
    }
    await line.say(words[message])
    with pytest.raises(BadRequestError, match="does not belong on this stream"):
        await line.hear_nothing_more()


async def test_a_message_for_another_session_is_refused(client: Probe, node: ToyNode) -> None:
    line, _ = await opened(client, node)
    await line.say(step_of(0, session=b"t" * 16))
    with pytest.raises(BadRequestError, match="names another"):
        await line.hear_nothing_more()
    assert node.engine.forwards == 0


async def test_bytes_that_are_no_message_end_the_stream_and_say_why(client: Probe, node: ToyNode) -> None:
    line, _ = await opened(client, node)
    await line.say(b"GET / HTTP/1.1")
    with pytest.raises(BadRequestError, match="a frame starts with"):
        await line.hear_nothing_more()


async def test_a_step_without_tokens_or_rows_is_answered_with_nothing(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    empty = replace(step_of(0, torch.zeros(0, WIDTH)), counts=())
    await line.say(empty, step_of(1, random_tokens(2), counts=[2, 0]))
    assert (await reply_of(replies)).counts == ()
    assert (await reply_of(replies)).counts == (2, 0)


# --- routes


async def test_a_replayed_older_epoch_changes_nothing_and_is_shown_out(client: Probe, node: ToyNode) -> None:
    old, new = (grant_of(client.identity, [hop_of(node)], epoch=epoch) for epoch in (0, 1))
    line = await client.open(node, new)
    await line.hear()
    replayed = await client.open(node, old)
    assert await replayed.hear() is None
    await line.say(step_of(0, epoch=1))
    await until(lambda: node.engine.forwards == 1)


async def test_a_newer_open_takes_the_session_over_and_the_old_line_is_not_heard_any_more(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0))
    await reply_of(replies)
    newer = await client.open(node, grant_of(client.identity, [hop_of(node)], epoch=1))
    assert await newer.hear() == Expect(session=SESSION, epoch=1, step=1)
    assert await line.hear() is None
    await newer.say(step_of(1, epoch=1))
    assert (await reply_of(replies)).step == 1 and node.engine.forwards == 2


async def test_a_hop_that_was_routed_out_can_neither_send_steps_nor_close_the_session(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(2, 4)
    out, stays = Probe(), Probe()
    routes = [[absent_hop(0, 2, probe.identity), hop_of(node)] for probe in (out, stays)]
    replies = await client.attach(node, grant_of(client.identity, routes[0]))
    above = await out.open(node, grant_of(client.identity, routes[0]), 1)
    assert await above.hear() == Expect(session=SESSION, epoch=0, step=0)
    await above.say(step_of(0))
    await reply_of(replies)
    new = await stays.open(node, grant_of(client.identity, routes[1], epoch=1), 1)
    assert await new.hear() == Expect(session=SESSION, epoch=1, step=1)
    with contextlib.suppress(SwarmError):  # it has been shown out already
        await above.say(step_of(1, epoch=1), Close(session=SESSION))
    await new.say(step_of(1, epoch=1))
    assert (await reply_of(replies)).step == 1
    assert node.engine.forwards == 2 and num_sessions(node) == 1
    await out.close()
    await stays.close()


@pytest.mark.parametrize("case", ["another client", "another session", "forged", "wrong caller"])
async def test_a_reroute_must_be_the_word_of_the_same_client_for_the_same_caller(
    swarm: ToySwarm, client: Probe, case: str
) -> None:
    """Else the hop above could steal the session, or point it at hops of its own."""
    node, above = await swarm.serve(2, 4), Probe()
    route = [absent_hop(0, 2, above.identity), hop_of(node)]
    line = await above.open(node, grant_of(client.identity, route), 1)
    await line.hear()
    grants = {
        "another client": grant_of(above.identity, route, epoch=1),
        "another session": grant_of(client.identity, route, epoch=1, session=b"t" * 16),
        "forged": replace(grant_of(above.identity, route, epoch=1), client=client.identity.peer_id),
        "wrong caller": grant_of(client.identity, [absent_hop(0, 2), hop_of(node)], epoch=1),
    }
    await line.say(Reroute(grant=grants[case], index=1))
    with pytest.raises(BadRequestError if case == "another session" else UnauthenticatedError):
        await line.hear_nothing_more()
    await above.close()


async def test_an_honest_reroute_is_answered_with_what_is_wanted(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0))
    await reply_of(replies)
    await line.say(Reroute(grant=grant_of(client.identity, [hop_of(node)], epoch=5), index=0))
    assert await line.hear() == Expect(session=SESSION, epoch=5, step=1)


# --- the hop below


@pytest.mark.parametrize("word", ["open", "attach", "close", "step", "reply", "garbage"])
async def test_the_hop_below_cannot_take_the_session_over(swarm: ToySwarm, client: Probe, word: str) -> None:
    """What comes up a stream that we dialled was not checked: only Expect and HopLost mean anything there."""
    node = await swarm.serve(0, 2)
    below = await FakeHop(Span(2, 4)).start()
    line = await client.open(node, grant_of(client.identity, [hop_of(node), hop_of(below)]))
    assert await line.hear() == Expect(session=SESSION, epoch=0, step=0)
    to_node = await below.lines.get()
    assert isinstance(await to_node.hear(), Open)
    forged = grant_of(below.identity, [hop_of(node), hop_of(below)], epoch=9)
    words = {
        "open": Open(grant=forged, index=0, dtype="float32"),
        "attach": Attach(grant=forged, step=0),
        "close": Close(session=SESSION),
        "step": step_of(0),
        "reply": Reply(session=SESSION, epoch=0, step=0, counts=(1,), payload=compression.pack(random_tokens(1))),
        "garbage": b"garbage",
    }
    await to_node.say(words[word])
    lost = await line.hear()
    assert isinstance(lost, HopLost) and (lost.epoch, lost.index, lost.code) == (0, 1, "peer_unreachable")
    await line.say(step_of(0))
    await until(lambda: node.engine.forwards == 1)
    assert num_sessions(node) == 1
    await below.stop()


async def test_a_hop_below_that_asks_for_everything_again_and_again_costs_no_memory(swarm: ToySwarm, client: Probe) -> None:
    """It reads nothing and repeats Expect(0): it gets the history a few times in an epoch, and then it counts as lost."""
    node = await swarm.serve(0, 2)
    below = await FakeHop(Span(2, 4)).start()
    line = await client.open(node, grant_of(client.identity, [hop_of(node), hop_of(below)]))
    await line.hear()
    to_node = await below.lines.get()
    await line.say(*(step_of(number, random_tokens(1_000), counts=[1] * 1_000) for number in range(9)))
    await until(lambda: node.engine.forwards == 9)
    with contextlib.suppress(SwarmError):
        for _ in range(2_000):
            await to_node.say(Expect(session=SESSION, epoch=0, step=0))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.index == 1 and "again and again" in lost.message
    await below.stop()


async def test_the_hop_below_may_not_report_hops_above_itself(swarm: ToySwarm, client: Probe) -> None:
    node = await swarm.serve(0, 2)
    below = await FakeHop(Span(2, 4)).start()
    line = await client.open(node, grant_of(client.identity, [hop_of(node), hop_of(below)]))
    await line.hear()
    to_node = await below.lines.get()
    await to_node.say(*(HopLost(session=SESSION, epoch=0, index=index, code="internal", message="!") for index in (0, 1)))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.index == 1
    await below.stop()


async def test_a_word_from_below_while_a_session_closes_does_not_keep_its_close_from_the_hop_below(
    client: Probe, swarm: ToySwarm
) -> None:
    """Else that hop would keep the session for RESUME_S."""
    node = await swarm.serve(0, 2)
    below = await FakeHop(Span(2, 4)).start()
    line = await client.open(node, grant_of(client.identity, [hop_of(node), hop_of(below)]))
    to_node = await below.lines.get()
    assert isinstance(await to_node.hear(), Open)
    (hop,), computes, gate = node.host.hops._hops.values(), asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> None:
        computes.set()
        await gate.wait()

    hop.sequences.take_step = slow  # type: ignore[method-assign]
    await line.say(step_of(0))
    await computes.wait()
    await line.say(Close(session=SESSION))
    await until(lambda: hop.is_closed)
    await hop.put(hop.down.wire, Expect(session=SESSION, epoch=0, step=0))
    gate.set()
    assert await to_node.hear() == Close(session=SESSION)
    await until(lambda: num_sessions(node) == 0)
    await below.stop()
