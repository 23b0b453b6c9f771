"""What waits for a session is bounded; losses are told once.

The bounds are a number and bytes.
"""

from __future__ import annotations

import asyncio

import torch

from protocols.ids import Span
from protocols.inference import Expect, History, HopLost, Reply
from swarm.inference.hop.compute import Output
from swarm.inference.hop.hops import HopLimits
from swarm.streams.inbox import Inbox, weight
from tests.swarm.inference.probe import FakeHop, Probe, grant_of, hop_of, step_of
from tests.swarm.inference.toy import WIDTH, ToySwarm, random_tokens, until


async def test_a_put_waits_for_room_in_number_and_in_bytes() -> None:
    inbox: Inbox[str] = Inbox(3, 100)
    await inbox.put("large", 1_000)  # one alone may pass the limit
    waiting = asyncio.create_task(inbox.put("next", 10))
    await asyncio.sleep(0)
    assert not waiting.done() and len(inbox) == 1
    assert await inbox.get() == "large"
    await waiting
    for name in "ab":
        await inbox.put(name)
    full = asyncio.create_task(inbox.put("c", 5))
    await asyncio.sleep(0)
    assert not full.done()
    full.cancel()
    await asyncio.gather(full, return_exceptions=True)
    assert [await inbox.get() for _ in range(3)] == ["next", "a", "b"] and inbox.num_bytes == 0


def test_weights_are_those_of_payload_and_positions() -> None:
    step = step_of(0, torch.zeros(10, WIDTH), positions=range(10))
    assert weight(step) == 10 * WIDTH * 4 + 36 * 10
    history = History(session=step.session, epoch=0, base=1, counts=(10,), payload=step.payload)
    reply = Reply(session=step.session, epoch=0, step=0, counts=(10,), payload=step.payload)
    assert weight(history) == weight(reply) == 10 * WIDTH * 4
    assert weight(Expect(session=step.session, epoch=0, step=0)) == weight(iter(())) == 0


async def test_large_frames_do_not_pile_up_behind_a_step_that_takes_long(swarm: ToySwarm) -> None:
    node, client = await swarm.serve(0, 4), Probe()
    line = await client.open(node, grant_of(client.identity, [hop_of(node)]))
    assert isinstance(await line.hear(), Expect)
    (hop,) = node.host._hops._hops.values()  # type: ignore[union-attr]
    release = asyncio.Event()

    async def slow(ops: object, counts: object, hidden: torch.Tensor, *others: object) -> Output:
        await release.wait()
        return Output(values=hidden)

    hop.sequences._compute.step = slow  # type: ignore[method-assign, assignment]
    wide = torch.zeros(1 << 12, 16 * WIDTH)  # a step that no hop takes: what matters is that it waits behind the first
    frames = [step_of(0).encode(), *(step_of(number, wide).encode() for number in range(1, 60))]
    flooding = asyncio.create_task(line.say(*frames))
    await until(lambda: hop._inbox.num_bytes > 14 << 20)
    await asyncio.wait((flooding,), timeout=0.3)
    assert hop._inbox.num_bytes <= 16 << 20 and hop.held_bytes >= hop._inbox.num_bytes
    assert not flooding.done()  # the sender feels it
    release.set()
    await flooding
    await client.close()


async def test_sessions_that_keep_too_much_alive_end(swarm: ToySwarm) -> None:
    """Replies that no client fetches are in no history, so dropping histories does not give them back."""
    node, client = await swarm.serve(0, 4, limits=HopLimits(held_bytes=1_000)), Probe()
    small = await client.open(node, grant_of(client.identity, [hop_of(node)], session=b"a" * 16))
    await small.say(step_of(0, random_tokens(10), session=b"a" * 16))
    large = await client.open(node, grant_of(client.identity, [hop_of(node)], session=b"b" * 16))
    await large.say(step_of(0, random_tokens(100), session=b"b" * 16))
    await large.hear_nothing_more()
    await until(lambda: node.host.num_sessions == 1 and node.engine.used_bytes == 10)
    await client.close()


async def test_a_loss_is_told_once_however_often_it_comes_from_below(swarm: ToySwarm) -> None:
    node, client, fake = await swarm.serve(0, 2), Probe(), await FakeHop(Span(2, 4)).start()
    line = await client.open(node, grant_of(client.identity, [hop_of(node), hop_of(fake)]))
    below = await fake.lines.get()
    assert isinstance(await line.hear(), Expect)
    lost = HopLost(session=b"s" * 16, epoch=0, index=1, code="internal", message="!")  # type: ignore[arg-type]
    stale = HopLost(session=b"s" * 16, epoch=7, index=1, code="internal", message="?")  # type: ignore[arg-type]
    await below.say(stale, *[lost] * 400)
    assert await line.hear() == lost
    await line.say(step_of(0), step_of(9))  # a gap: the answer comes after whatever else was told
    assert isinstance(await line.hear(), Expect)
    await client.close()
    await fake.stop()
