"""The watcher tells deaths soon and survives a swarm that is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from node.watching.pulse import Pulse
from node.watching.watcher import UNWATCHED_S, WATCHED_S, Watcher
from protocols.errors import PeerUnreachableError
from protocols.ids import Span
from protocols.records import PeerRecord
from tests.node.dashboard.made_swarm import MadeSource, made_record, many
from tests.virtual_time import loop_clock, virtual_time

FIRST, SECOND = made_record(1, Span(0, 3), 6, "first"), made_record(2, Span(3, 6), 6, "second")


async def until(condition: Callable[[], object], within_s: float) -> float:
    """Seconds until it holds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return loop.time() - began_s


@contextlib.asynccontextmanager
async def running(watcher: Watcher) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@virtual_time
async def test_a_death_is_told_soon_if_somebody_watches_and_else_at_the_next_look() -> None:
    source = MadeSource([FIRST, SECOND])
    watcher = Watcher(source.met, clock=loop_clock())
    async with running(watcher):
        await until(lambda: watcher.look.models, 1)
        assert not watcher.changes, "what is there at the beginning is no news"
        source.silent.add(SECOND.peer)
        assert await until(lambda: watcher.changes, UNWATCHED_S + 1) > WATCHED_S
        with watcher.visitors.watching():
            source.silent.clear()
            assert await until(lambda: watcher.changes[-1].kind == "complete", 2 * WATCHED_S) <= WATCHED_S + 0.3
    assert [one.kind for one in watcher.changes] == ["died", "gap", "returned", "complete"]


@virtual_time
async def test_a_swarm_that_is_gone_is_told_once_and_tried_again() -> None:
    source = MadeSource([FIRST])
    is_gone = True

    @contextlib.asynccontextmanager
    async def met() -> AsyncIterator[MadeSource]:
        if is_gone:
            raise PeerUnreachableError("no peer of the swarm answers")
        yield source

    watcher = Watcher(met, clock=loop_clock())
    async with running(watcher):
        await asyncio.sleep(20)
        assert [(one.kind, one.text) for one in watcher.changes] == [("problem", "no peer of the swarm answers")]
        assert watcher.look.problem
        is_gone = False
        await until(lambda: watcher.look.models, 5)
        assert not watcher.look.problem


@virtual_time
async def test_one_late_hello_is_no_silence_and_two_are() -> None:
    delay_s = 5.0

    async def ping(record: PeerRecord) -> float:
        await asyncio.sleep(delay_s)
        return 3.0

    pulse = Pulse(ping)
    pulse.begin([FIRST])
    await pulse.settled(3)
    assert not pulse.silent
    pulse.begin([FIRST])
    await pulse.settled(3)
    assert pulse.silent == {FIRST.peer}
    delay_s = 0.1
    pulse.begin([FIRST])
    await pulse.settled(3)
    assert not pulse.silent and pulse.trips_ms == {FIRST.peer: 3.0}
    pulse.begin([])
    assert not pulse.trips_ms, "who is announced no more is forgotten"
    await pulse.close()


@virtual_time
async def test_everyone_of_a_crowd_has_a_turn() -> None:
    crowd, asked = many(200, 128), list[str]()

    async def ping(record: PeerRecord) -> float:
        asked.append(record.peer)
        await asyncio.sleep(0.2)
        return 1.0

    pulse = Pulse(ping)
    for _ in range(4):
        pulse.begin(crowd)
        await pulse.settled(1)
    assert len(asked) == 4 * 64 and set(asked) == {record.peer for record in crowd}
    await pulse.close()
