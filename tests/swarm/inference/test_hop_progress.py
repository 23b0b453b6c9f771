"""What a hop says of itself to the client of its session."""

from __future__ import annotations

import asyncio

import pytest

from protocols.ids import Span
from protocols.inference import Expect, HopLost, Reroute
from protocols.progress import Progress
from swarm.inference.client import suspicion
from swarm.inference.client.suspicion import Kind, Verdict
from swarm.inference.hop.hop import PART_S
from swarm.inference.hop.hops import HopLimits
from swarm.inference.hop.pace import MAX_EPOCHS
from swarm.streams.links import Links
from tests.swarm.inference.lines import SESSION, history_of, opened, reply_of
from tests.swarm.inference.probe import FakeHop, Probe, absent_hop, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToyNode, ToySwarm, until
from tests.virtual_time import Shifted


async def progress_of(client: Probe, node: ToyNode) -> Progress:
    return await Links(client.pool).progress(hop_of(node), SESSION)


async def test_a_step_counts_as_received_only_if_those_before_it_came(client: Probe, node: ToyNode) -> None:
    """Else a hop above that drops a step, or makes one up, lets this one look as if it kept a step to itself."""
    line, replies = await opened(client, node)
    await line.say(step_of(1), step_of(0))
    await reply_of(replies)
    await line.say(step_of(6), step_of(9))
    assert isinstance(await line.hear(), Expect)
    word = await progress_of(client, node)
    assert (word.received, word.computed, word.is_busy) == (1, 1, False)
    above = Progress(epoch=0, received=2, computed=2, sent=2)
    assert suspicion.judge([above, word], 2, 0) == Verdict(Kind.TORN, (0, 1))


async def test_what_came_over_an_older_wire_counts_no_more(client: Probe, node: ToyNode, monkeypatch: pytest.MonkeyPatch) -> None:
    line, _ = await opened(client, node)
    (hop,) = node.host.hops._hops.values()

    async def lost(*_: object) -> None:
        """As if its message stream had ended before the step was sent."""

    monkeypatch.setattr(hop.sequences, "take_step", lost)
    await line.say(step_of(0), step_of(1))
    await until(lambda: hop.progress.received == 2)
    again = await client.open(node, hop.place.grant)
    assert isinstance(await again.hear(), Expect)
    assert (await progress_of(client, node)).received == 0


async def test_a_hop_is_busy_between_two_parts_of_a_history_for_a_while(swarm: ToySwarm, client: Probe) -> None:
    time_passes = Shifted()
    swarm.clock = time_passes.clock()
    node = await swarm.serve(0, 4)
    line, _ = await opened(client, node)
    await line.say(history_of(9, 0, 2, [2]))
    await until(lambda: node.engine.forwards == 1)
    assert (await progress_of(client, node)).is_busy
    time_passes.ahead_s = PART_S  # the next part does not come
    assert not (await progress_of(client, node)).is_busy


async def test_a_hop_whose_new_route_waits_for_its_pace_says_so(swarm: ToySwarm, client: Probe) -> None:
    """It knows the route that its client asks about, and has sent nothing on it."""
    node, below = await swarm.serve(0, 2), await FakeHop(Span(2, 4)).start()
    route = [hop_of(node), hop_of(below)]
    line = await client.open(node, grant_of(client.identity, route))
    await line.say(step_of(0))
    await until(lambda: node.engine.forwards == 1)
    for epoch in range(1, MAX_EPOCHS + 1):
        await line.say(Reroute(grant=grant_of(client.identity, route, epoch=epoch), index=0))
    async with asyncio.timeout(60):
        while (word := await progress_of(client, node)).epoch < MAX_EPOCHS:
            pass
    assert (word.epoch, word.computed, word.sent, word.is_busy) == (MAX_EPOCHS, 1, 0, True)
    line.stream.cancel()
    await below.stop()


async def test_a_hop_that_dials_as_many_as_it_may_blames_itself(swarm: ToySwarm, client: Probe) -> None:
    """The hop below was never asked."""
    node = await swarm.serve(0, 2, limits=HopLimits(max_dials=0))
    line = await client.open(node, grant_of(client.identity, [hop_of(node), absent_hop(2, 4)]))
    assert isinstance(await line.hear(), Expect)
    lost = await line.hear()
    assert isinstance(lost, HopLost) and (lost.index, lost.code) == (0, "overloaded")
    assert (await progress_of(client, node)).has_given_up
