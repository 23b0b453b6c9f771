"""One client cannot take all engines of parts, nor make many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from node.engines.engine import Engine, choose_engine
from node.serving.part_engines import MAX_PARTS_PER_CLIENT
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import OverloadedError
from protocols.ids import PeerId, SessionId, Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_parts

HOSTED = Span(0, 6)
PARTS = [Span(start, stop) for start in range(5) for stop in range(start + 1, 6)]


@dataclass
class Served:
    """A runner of all blocks, and the parts that it was made to make an engine of."""

    runner: Runner
    made: list[Span] = field(default_factory=list)

    def session(self, number: int, client: str, part: Span) -> SessionSequences:
        return SessionSequences(self.runner, SessionId(bytes([number]) * 16), PeerId(client), part=part)

    async def step(self, rows: SessionSequences) -> None:
        await rows.step((), [1], torch.zeros(1, self.runner.engine.hidden_size), None)


@pytest.fixture
async def served(checkpoint: Path) -> AsyncIterator[Served]:
    whole, parts = load_parts(open_checkpoint(checkpoint), HOSTED, dtype=torch.float32)

    def make(part: Span, limit_bytes: int) -> Engine:
        found.made.append(part)
        return choose_engine(parts.cut(part), limit_bytes)

    found = Served(Runner(choose_engine(whole, 1 << 26), make_part=make))
    found.runner.start()
    yield found
    await found.runner.stop()


async def test_one_client_leaves_places_to_the_others(served: Served) -> None:
    greedy = [served.session(number, "greedy", part) for number, part in enumerate(PARTS[:MAX_PARTS_PER_CLIENT])]
    await asyncio.gather(*map(served.step, greedy))
    with pytest.raises(OverloadedError, match="the limit of one client"):
        await served.step(served.session(50, "greedy", PARTS[MAX_PARTS_PER_CLIENT]))
    same, other = served.session(51, "greedy", PARTS[0]), served.session(52, "honest", PARTS[MAX_PARTS_PER_CLIENT])
    await served.step(same)  # a part that it uses already takes no further place
    await served.step(other)
    for rows in (*greedy, same, other):
        await rows.clear()
    await served.step(again := served.session(53, "greedy", PARTS[-1]))  # its places are free again
    await again.clear()


async def test_engines_that_no_session_waits_for_are_not_made(served: Served) -> None:
    """30 sessions of one client ask for a part each and close at once; the honest one that asks after them waits for one engine."""
    asked = [asyncio.create_task(served.step(served.session(number, "storm", part))) for number, part in enumerate(PARTS * 2)]
    await asyncio.sleep(0)  # each has begun to ask
    for task in asked:
        task.cancel()
    honest = served.session(200, "honest", Span(5, 6))
    async with asyncio.timeout(60):
        await served.step(honest)
    await honest.clear()
    assert Span(5, 6) in served.made and len(served.made) <= 2


async def test_sessions_that_come_at_once_get_no_more_parts_than_one_client_may_have(served: Served) -> None:
    """All passed the first look at what the client has, and an engine was made for each before it was refused."""
    storm = [served.session(number, "storm", part) for number, part in enumerate(PARTS * 2)]
    outcomes = await asyncio.gather(*map(served.step, storm), return_exceptions=True)
    assert any(isinstance(outcome, OverloadedError) for outcome in outcomes)
    assert len(served.made) == MAX_PARTS_PER_CLIENT
    for rows in storm:
        await rows.clear()
