"""Time limits, with an event loop that stands still for a while."""

from __future__ import annotations

import asyncio
import time

import pytest

from swarm import awake

LIMIT_S = 0.05


def stand_still(seconds: float = LIMIT_S + awake.STOPPED_S) -> None:
    """As if this process had been stopped: no timer and no answer is noticed meanwhile."""
    time.sleep(seconds)


async def test_what_takes_too_long_ends() -> None:
    with pytest.raises(TimeoutError):
        async with awake.timeout(LIMIT_S):
            await asyncio.Event().wait()


async def test_a_limit_starts_again_after_each_time_that_the_process_was_stopped() -> None:
    async with awake.timeout(LIMIT_S):
        for _ in range(2):
            stand_still()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with awake.timeout(LIMIT_S):
            stand_still()
            await asyncio.Event().wait()


async def test_an_answer_that_came_meanwhile_is_read() -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    loop.call_later(0.01, stand_still)
    loop.call_later(0.02, answer.set_result, "here")
    async with awake.timeout(LIMIT_S):
        assert await answer == "here"


async def test_a_stop_within_a_long_limit_costs_nothing_of_it() -> None:
    """At the end of the stop the limit would be over, and an answer that is here already would not be read in time."""
    limit_s = awake.STOPPED_S
    async with awake.timeout(limit_s) as watch:
        stand_still(awake.PIECE_S + awake.STOPPED_S)
        for _ in range(5):
            await asyncio.sleep(0)
        assert watch.was_stopped
        await asyncio.sleep(limit_s / 2)
    async with awake.timeout(limit_s) as watch:
        await asyncio.sleep(0)
    assert not watch.was_stopped


async def test_its_end_leaves_no_timer() -> None:
    async with awake.timeout(LIMIT_S):
        pass
    stand_still()
    await asyncio.sleep(0)
