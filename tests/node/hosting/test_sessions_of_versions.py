"""Sessions of a model in training take its newest version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from protocols.errors import VersionGoneError
from protocols.ids import Span
from swarm.routing.shown import FRESH_VERSIONS_S
from tests.families import make_checkpoint
from tests.node.hosting.versions import Model, Swarm, swarm_of

FIRST, LAST = Span(0, 2), Span(2, 5)
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_checkpoint("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture
async def swarm(model: Model) -> AsyncIterator[Swarm]:
    async with swarm_of(model) as swarm:
        yield swarm


async def test_a_session_takes_the_newest_version_of_a_whole_route_and_keeps_it(swarm: Swarm, model: Model) -> None:
    """Half of the nodes publish first: until the others have, new sessions get the version before. One dies: its replica has it, too."""
    first, last, spare = await swarm.add(FIRST, keep=1), await swarm.add(LAST, keep=1), await swarm.add(LAST, keep=1)
    for node in (first, last, spare):
        await node.replace(1)
    await first.replace(2)
    before = swarm.session()
    tokens_before = await swarm.next_tokens(before, PROMPT, 4)
    assert before.versions == (1,) and model.answers(1, PROMPT, tokens_before), "version 2 has no whole route yet"
    await last.replace(2)
    await asyncio.sleep(FRESH_VERSIONS_S)  # what was seen of the directory is not older
    after = swarm.session()
    tokens = await swarm.next_tokens(after, PROMPT, 8)
    assert after.versions == (2,) and model.answers(2, PROMPT, tokens)
    used = next(node for node in (last, spare) if before.route[-1].peer == node.peer_id)
    await used.server.stop(0)
    tokens_before += await swarm.next_tokens(before, tokens_before[-1:], 4)
    assert before.versions == (1,) and before.replaced == 1 and model.answers(1, PROMPT, tokens_before)
    for session in (before, after):
        await session.close()


@pytest.mark.parametrize("follow", [False, True], ids=["ends", "follows"])
async def test_a_session_whose_version_is_dropped_ends_with_the_reason_or_follows(
    swarm: Swarm, model: Model, follow: bool
) -> None:
    nodes = [await swarm.add(FIRST, drain_s=0.0, keep=1), await swarm.add(LAST, drain_s=0.0, keep=1)]
    for node in nodes:
        await node.replace(1)
    session = swarm.session(follow)
    tokens = await swarm.next_tokens(session, PROMPT, 4)
    fork = await session.fork()
    for number in (2, 3):
        for node in nodes:
            await node.replace(number)
        assert {one.weights.version for one in nodes[0].presence.record().hosted} == {number - 1, number}
    if follow:
        more = await swarm.next_tokens(session, tokens[-1:], 4)
        assert session.versions == (1, 2) and session.replaced > 0, "one node had dropped 1, and the other not yet published 3"
        assert model.answers(1, PROMPT, tokens) and model.answers(2, [*PROMPT, *tokens], more)
        more = await swarm.next_tokens(fork, tokens[-1:], 4)
        assert fork.versions == (1, 3) and model.answers(3, [*PROMPT, *tokens], more)
    else:
        for one, now in ((session, 2), (fork, 3)):
            with pytest.raises(VersionGoneError, match=rf"version 1 of toy.*serve version {now} now; ask again"):
                async with asyncio.timeout(60):
                    await swarm.next_tokens(one, tokens[-1:], 4)
    await session.close()
    await fork.close()


async def test_a_session_that_has_said_nothing_takes_another_version_without_a_word(swarm: Swarm, model: Model) -> None:
    """It goes by records of some seconds ago: the version that they show is gone when it opens."""
    node = await swarm.add(Span(0, 5), drain_s=0.0)
    await node.replace(1)
    first = swarm.session()
    await swarm.next_tokens(first, PROMPT, 1)
    await first.close()
    await node.replace(2)
    second = swarm.session()
    assert model.answers(2, PROMPT, await swarm.next_tokens(second, PROMPT, 4)) and second.versions == (2,)
    await second.close()
