"""What is waited for, and what `on_wait` hears of it."""

from __future__ import annotations

from protocols.ids import Span
from swarm import waiting
from swarm.waiting import JOINING, READING, Wait, Waits


def test_the_wait_that_was_set_last_is_told_and_the_one_below_it_comes_back() -> None:
    heard: list[Wait | None] = []
    waits = Waits(heard.append)
    with waits.on(JOINING), waits.on(READING):
        pass
    assert heard == [JOINING, READING, JOINING, None]


def test_a_wait_that_is_told_a_thousand_times_is_heard_once_a_per_cent() -> None:
    heard: list[Wait | None] = []
    with Waits(heard.append).on(waiting.hashing("tiny")) as further:
        for done in range(1_001):
            further(done, 1_000)
    assert [wait.percent for wait in heard if wait and wait.total] == list(range(101))
    assert heard[-1] is None and len({wait.key for wait in heard if wait}) == 1


def test_a_wait_is_one_line_for_people_with_its_per_cent() -> None:
    assert str(READING.at(400, 1_000)) == "reading the prompt: 40 %"
    assert str(waiting.missing([Span(24, 30)], 0.0, 60.0)) == "waiting for blocks 24:30, no live node hosts them"
