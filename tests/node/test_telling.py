"""A node reports its work once a minute, and no idle minute."""

from __future__ import annotations

import asyncio

import pytest

from node.events import Event
from node.serving.worked import Worked
from node.telling import EVERY_S, keep_telling, told
from tests.swarm.inference.toy import ToySwarm, ask, fresh_seed, random_tokens


@pytest.mark.parametrize(
    ("worked", "num_peers", "text"),
    [(Worked(3, 1_204), 2, "3 sessions, 1,204 tokens served, 2 peers"), (Worked(1, 1), 1, "1 session, 1 token served, 1 peer")],
)
def test_the_line(worked: Worked, num_peers: int, text: str) -> None:
    assert told(worked, num_peers) == text


async def test_sessions_and_tokens_of_real_steps_are_told_once_and_an_idle_minute_is_not() -> None:
    fresh_seed()
    toys = ToySwarm()
    minutes: asyncio.Queue[float] = asyncio.Queue()
    slept: list[float] = []
    said: list[Event] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await minutes.get()
        minutes.task_done()

    node = await toys.serve(0, 4)
    telling = asyncio.create_task(keep_telling(node.host.runner.work.take, lambda: 2, said.append, sleep))

    async def minute() -> None:
        before = len(slept)
        minutes.put_nowait(0.0)
        async with asyncio.timeout(60):
            while len(slept) == before:  # noqa: ASYNC110  (it has said what it had to, and sleeps again)
                await asyncio.sleep(0)

    try:
        first, second = toys.session(), toys.session()
        await ask(first, (), [20], random_tokens(20))
        await ask(first, (), [1], random_tokens(1))
        await ask(second, (), [9], random_tokens(9))
        await asyncio.sleep(0)
        await minute()
        await minute()  # idle
        await ask(second, (), [1], random_tokens(1))
        await minute()
        texts = [event.text for event in said]
        assert texts == ["2 sessions, 30 tokens served, 2 peers", "1 session, 1 token served, 2 peers"]
        assert {event.kind for event in said} == {"work"} and set(slept) == {EVERY_S}
        await asyncio.gather(first.close(), second.close())
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await toys.stop()
