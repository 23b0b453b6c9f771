"""The loop of virtual time: hours pass at once, in order.

It waits for threads, and says when all wait for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.virtual_time import VirtualLoop, loop_clock, virtual_time


@virtual_time
async def test_hours_pass_at_once_and_in_order() -> None:
    clock, ended = loop_clock(), list[float]()
    unix_s = clock.unix_s()

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        assert clock.now_s() == pytest.approx(seconds)
        ended.append(seconds)

    await asyncio.gather(*(sleeper(seconds) for seconds in (86_400.0, 0.001, 3_600.0, 3_600.5)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await asyncio.Event().wait()
    assert ended == sorted(ended) and clock.now_s() == clock.unix_s() - unix_s == 86_460.0


@virtual_time
async def test_while_a_thread_works_time_stands_still() -> None:
    may_end, sleeping = threading.Event(), asyncio.create_task(asyncio.sleep(100))
    working = asyncio.create_task(asyncio.to_thread(may_end.wait, 60))
    threading.Timer(0.05, may_end.set).start()
    assert await working and loop_clock().now_s() == 0.0 and not sleeping.done()
    await sleeping
    assert loop_clock().now_s() == 100.0


async def repeat() -> None:
    while True:  # noqa: ASYNC110
        await asyncio.sleep(60)


async def wait_beside_a_timer() -> None:
    await asyncio.gather(asyncio.Event().wait(), repeat())


@pytest.mark.parametrize(
    ("wait", "told"), [(asyncio.Event().wait, "and no timer is set"), (wait_beside_a_timer, "a timer that repeats")]
)
def test_tasks_that_wait_for_ever_are_told(wait: Callable[[], Any], told: str) -> None:
    loop = VirtualLoop(deadlock_s=0.01)
    waiting = loop.create_task(wait())
    with pytest.raises(AssertionError, match=told):
        loop.run_until_complete(waiting)
    loop.now_s = 0.0
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
