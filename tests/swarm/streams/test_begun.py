"""Work whose first part runs at once, the rest in its awaiter.

Errors and cancels go through.
"""

from __future__ import annotations

import asyncio

import pytest

from swarm.streams.begun import AwaitedQueue, Begun


async def test_the_first_part_runs_at_once_and_the_rest_when_it_is_awaited() -> None:
    seen: list[str] = []
    first, second = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        seen.append("begun")
        await first.wait()
        seen.append("middle")
        await second.wait()
        seen.append("end")

    awaitable = Begun(work())
    assert seen == ["begun"]
    waiting = asyncio.ensure_future(_await(awaitable))
    first.set()
    await asyncio.sleep(0.01)
    assert seen == ["begun", "middle"] and not waiting.done()
    second.set()
    await waiting
    assert seen == ["begun", "middle", "end"]


async def _await(awaitable: Begun) -> None:
    await awaitable


async def test_what_never_waits_is_over_at_once() -> None:
    seen: list[int] = []

    async def work() -> None:
        seen.append(1)

    awaitable = Begun(work())
    assert seen == [1]
    await awaitable


@pytest.mark.parametrize("waits", [False, True])
async def test_what_it_raises_is_raised_where_it_is_awaited(waits: bool) -> None:
    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ZeroDivisionError

    awaitable = Begun(work())
    with pytest.raises(ZeroDivisionError):
        await awaitable


async def test_who_awaits_it_can_be_cancelled_and_so_is_it() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    waiting = asyncio.ensure_future(_await(Begun(work())))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert seen == ["cancelled"]


async def test_a_cancel_may_be_survived() -> None:
    seen: list[str] = []
    go = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go.wait()
            seen.append("cleaned up")

    waiting = asyncio.ensure_future(_await(Begun(work())))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    go.set()
    await waiting
    assert seen == ["cleaned up"]


async def test_a_queue_tells_whether_its_taker_waits() -> None:
    queue: AwaitedQueue[int] = AwaitedQueue()
    assert not queue.is_awaited  # no task waits yet
    taking = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert queue.is_awaited
    queue.put_nowait(1)
    assert not queue.is_awaited  # it is on its way
    queue.put_nowait(2)
    assert await taking == 1 and await queue.get() == 2 and not queue.is_awaited
    taking = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert not queue.is_awaited
