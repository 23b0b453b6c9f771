"""Policies that bound what one client may cost a node.

They are: pace of routes, dials, whose sessions give way, sessions that have ended.
"""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from protocols.errors import OverloadedError, UnauthenticatedError
from protocols.ids import ModelId, PeerId, SessionId, Span
from protocols.inference import Grant
from protocols.weights_id import Weights
from swarm.inference.hop.closed import MAX_CLIENTS, MAX_PER_CLIENT, Closed
from swarm.inference.hop.pace import EPOCHS_S, MAX_EPOCHS, Pace, delay_s
from swarm.inference.hop.shares import to_give_way
from swarm.streams.dials import Dials

SPAN = Span(0, 2)


def test_five_epochs_go_at_once_and_the_next_waits_for_the_first_to_be_old() -> None:
    epochs_s = deque[float](maxlen=MAX_EPOCHS)
    for at in range(MAX_EPOCHS):
        assert delay_s(epochs_s, 100.0 + at) == 0
        epochs_s.append(100.0 + at)
    assert delay_s(epochs_s, 104.0) == pytest.approx(EPOCHS_S - 4)
    assert delay_s(epochs_s, 100.0 + EPOCHS_S) == 0


async def test_an_epoch_that_has_begun_or_is_over_waits_for_nothing() -> None:
    now, slept = [0.0], list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(lambda: now[0], sleep)
    for epoch in (0, 1, 2, 2, 3, 4, 4, 0):
        await pace.turn(epoch)
    assert not slept
    await asyncio.gather(pace.turn(5), pace.turn(5), pace.turn(6))
    assert slept == [EPOCHS_S] and now == [EPOCHS_S]


async def test_the_newest_epoch_that_waits_is_known_until_it_waits_no_more() -> None:
    gate = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await gate.wait()

    pace = Pace(lambda: 0.0, sleep)
    for epoch in range(MAX_EPOCHS):
        await pace.turn(epoch)
    assert pace.awaited == -1
    waiting = [asyncio.create_task(pace.turn(epoch)) for epoch in (7, 8)]
    await asyncio.sleep(0)
    assert pace.awaited == 8
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert pace.awaited == -1


async def test_a_client_waits_for_its_own_dials_only_and_is_refused_when_the_node_dials_as_many_as_it_may() -> None:
    dials, running, release = Dials(max_per_client=2, max_in_all=3), list[str](), asyncio.Event()

    async def dial(client: str) -> None:
        async with dials.turn(PeerId(client)):
            running.append(client)
            await release.wait()

    tasks = [asyncio.create_task(dial(client)) for client in ("a", "a", "a", "b")]
    await asyncio.sleep(0)
    assert running == ["a", "a", "b"]
    with pytest.raises(OverloadedError, match="dials 3 others"):
        await dial("c")
    tasks[2].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert running == ["a", "a", "b"] and dials._num_running == 0


@pytest.mark.parametrize(
    ("held", "limit", "expected"),
    [
        ("a1 a2 b9", 12, ""),
        ("a1 a2 b9", 11, "b9"),
        ("a3 a4 a5 b9", 20, "a5"),  # b has the largest session, a has more in all
        ("a3 a4 a5 b9", 10, "a5 b9"),
        ("a3 a4 a5 b9", 6, "a5 b9 a4"),
        ("a3 a4 a5 b9", 0, "a5 b9 a4 a3"),
        ("", 0, ""),
    ],
)
def test_the_client_that_holds_most_gives_way_with_its_largest_first(held: str, limit: int, expected: str) -> None:
    found = to_give_way(held.split(), lambda one: one[0], lambda one: int(one[1:]), limit)
    assert found == expected.split()


def grant(client: str, number: int, epoch: int = 0, expires_s: float = 1_000.0) -> Grant:
    session = SessionId(number.to_bytes(16, "big"))
    return Grant(client=PeerId(client), session=session, epoch=epoch, weights=Weights(ModelId("toy", "ab" * 32)), route=(),
                 expires_s=expires_s)  # fmt: skip


def is_closed(closed: Closed, one: Grant, span: Span = SPAN) -> bool:
    try:
        closed.check(one, span)
    except UnauthenticatedError:
        return True
    return False


def test_a_closed_session_opens_again_in_a_later_epoch_only() -> None:
    closed = Closed()
    closed.note(grant("a", 1, epoch=3), SPAN, 0.0)
    closed.note(grant("a", 1, epoch=2), SPAN, 0.0)  # the end of an older one is noted later
    assert [is_closed(closed, grant("a", 1, epoch)) for epoch in (2, 3, 4)] == [True, True, False]
    assert not is_closed(closed, grant("a", 1, 3), Span(2, 4))
    assert not is_closed(closed, grant("a", 2, 3)) and not is_closed(closed, grant("b", 1, 3))


def test_what_is_remembered_is_bounded_by_client_and_ends_with_the_grants() -> None:
    closed = Closed()
    closed.note(grant("honest", 0), SPAN, 0.0)
    for number in range(MAX_PER_CLIENT + 5):
        closed.note(grant("a", number), SPAN, 0.0)
    assert is_closed(closed, grant("honest", 0))  # another's many closed sessions do not push it out
    assert not is_closed(closed, grant("a", 4)) and is_closed(closed, grant("a", 5))
    closed.note(grant("a", 9_999, expires_s=3_000.0), SPAN, 2_000.0)
    assert len(closed._clients[PeerId("a")]) == 1
    for number in range(MAX_CLIENTS):
        closed.note(grant(f"client{number}", 0), SPAN, 0.0)
    assert len(closed._clients) == MAX_CLIENTS
