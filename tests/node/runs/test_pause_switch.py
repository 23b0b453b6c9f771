"""A node pauses by hours and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import pytest

from node.runs.stage import pause_switch
from node.runs.stage.pause_switch import BY_HAND, PauseSwitch
from node.train_hours import TrainHours

NIGHT = TrainHours.parse("23-7")


@pytest.fixture(autouse=True)
def _no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is told by the change itself, not by the next look at the clock."""
    monkeypatch.setattr(pause_switch, "LOOK_S", 3600.0)


class LocalClock:
    def __init__(self, hour: int) -> None:
        self.hour = hour

    def now(self) -> datetime:
        return datetime(2026, 11, 29, self.hour)


@asynccontextmanager
async def followed(switch: PauseSwitch) -> AsyncIterator[asyncio.Queue[tuple[bool, str]]]:
    said: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    task = asyncio.create_task(switch.follow(lambda is_paused, reason: said.put_nowait((is_paused, reason))))
    try:
        async with asyncio.timeout(60):
            yield said
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_by_hand_is_told_at_once() -> None:
    switch = PauseSwitch()
    async with followed(switch) as said:
        switch.toggle()
        assert await said.get() == (True, BY_HAND)
        switch.toggle()
        assert await said.get() == (False, BY_HAND)
        assert said.empty()


async def test_a_node_that_starts_outside_its_hours_says_so() -> None:
    async with followed(PauseSwitch(NIGHT, LocalClock(12).now)) as said:
        assert await said.get() == (True, "outside --train-hours 23:00-07:00")


async def test_hours_that_begin_while_a_node_fetches_its_state_are_not_missed() -> None:
    clock, told = LocalClock(22), list[bool]()
    switch = PauseSwitch(NIGHT, clock.now)
    switch.tell(lambda is_paused, reason: told.append(is_paused))
    assert told == [True]
    clock.hour = 23
    async with followed(switch) as said:
        assert await said.get() == (False, "within --train-hours 23:00-07:00")


def test_hours_pause_and_a_change_by_hand_holds_until_their_next_change() -> None:
    clock = LocalClock(12)
    switch = PauseSwitch(NIGHT, clock.now)
    assert switch.is_paused
    switch.toggle()
    assert not switch.is_paused, "by hand, in the middle of the day"
    clock.hour = 23
    assert not switch.is_paused
    assert switch.reason == "within --train-hours 23:00-07:00", "the hand is forgotten"
    clock.hour = 7
    assert switch.is_paused
