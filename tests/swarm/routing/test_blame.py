"""A peer that failed is avoided, longer each time, and forgiven.

No clock runs here.
"""

from __future__ import annotations

import pytest

from protocols.defaults import AVOID_S
from protocols.errors import BadRequestError, CacheFullError, OverloadedError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId
from swarm.routing.blame import FORGET_S, MAX_AVOID_S, MAX_PAUSE_S, Blame

A, B = PeerId("a"), PeerId("b")
GONE = PeerUnreachableError("gone")


def test_nobody_is_avoided_without_a_failure() -> None:
    blame = Blame()
    assert not blame.is_avoided(A, 0) and not blame.can_be_asked_again(A, 0) and blame.last_cause is None


def test_each_failure_doubles_the_time_up_to_ten_minutes() -> None:
    blame, now_s = Blame(), 0.0
    for strike in range(8):
        blame.add(A, GONE, now_s)
        avoided_s = min(MAX_AVOID_S, AVOID_S * 2**strike)
        assert blame.is_avoided(A, now_s + avoided_s - 0.01) and not blame.is_avoided(A, now_s + avoided_s)
        assert not blame.is_avoided(B, now_s)
        now_s += avoided_s


def test_many_sessions_that_tell_of_one_death_are_one_strike() -> None:
    blame = Blame()
    for now_s in (0.0, 0.1, 0.2):
        blame.add(A, GONE, now_s)
    assert not blame.is_avoided(A, 0.2 + AVOID_S)
    assert blame.can_be_asked_again(A, 0.5)


def test_strikes_are_remembered_when_forgiven_and_forgotten_after_a_quarter_of_an_hour() -> None:
    blame = Blame()
    blame.add(A, GONE, 0)
    blame.forgive(A, 1)
    assert not blame.is_avoided(A, 1)
    blame.add(A, GONE, 2)
    assert blame.is_avoided(A, 2 + 1.5 * AVOID_S)  # the second strike
    blame.add(A, GONE, 2 + FORGET_S)
    assert not blame.is_avoided(A, 2 + FORGET_S + AVOID_S)  # the first again


def test_peers_that_failed_long_ago_take_no_memory() -> None:
    blame = Blame()
    for number in range(1_000):
        blame.add(PeerId(str(number)), GONE, number * 10.0)
    assert len(blame._failures) <= FORGET_S / 10 + 1


def test_a_failed_peer_may_be_asked_again_soon_and_ever_less_often() -> None:
    blame, now_s = Blame(), 0.0
    pauses = []
    for _ in range(9):
        blame.add(A, GONE, now_s)
        pauses.append(
            next(pause for pause in (tenth / 10 for tenth in range(1, 200)) if blame.can_be_asked_again(A, now_s + pause))
        )
        now_s += pauses[-1]
        blame.forgive(A, now_s)
    assert pauses[0] <= 0.3 and pauses == sorted(pauses) and pauses[-1] <= MAX_PAUSE_S + 0.1 and pauses[-1] > 20 * pauses[0]


@pytest.mark.parametrize("cause", [CacheFullError("full"), OverloadedError("busy"), BadRequestError("no"), SwarmError("no")])
def test_an_answer_to_a_ping_does_not_forgive_a_peer_that_was_only_full_or_refuses(cause: SwarmError) -> None:
    blame = Blame()
    blame.add(A, cause, 0)
    assert blame.is_avoided(A, 10) and not blame.can_be_asked_again(A, 10)


@pytest.mark.parametrize(
    ("cause", "lasts_s"), [(OverloadedError("busy"), AVOID_S), (CacheFullError("full"), AVOID_S), (GONE, 8 * AVOID_S)]
)
def test_a_peer_that_is_busy_for_minutes_is_asked_again_as_soon_as_one_that_is_busy_for_once(
    cause: SwarmError, lasts_s: float
) -> None:
    blame, now_s = Blame(), 0.0
    for _ in range(4):
        blame.add(A, cause, now_s)
        began_s = now_s
        while blame.is_avoided(A, now_s):
            now_s += 1.0
    assert now_s - began_s == lasts_s


def test_a_busy_peer_is_asked_again_soon_although_it_had_died_before() -> None:
    blame, now_s = Blame(), 0.0
    for _ in range(3):
        blame.add(A, GONE, now_s)
        while blame.is_avoided(A, now_s):
            now_s += 1.0
    blame.add(A, OverloadedError("busy"), now_s)
    assert blame.is_avoided(A, now_s + AVOID_S - 1) and not blame.is_avoided(A, now_s + AVOID_S)


def test_the_newest_cause_is_told() -> None:
    blame = Blame()
    blame.add(A, PeerUnreachableError("first"), 5)
    blame.add(B, PeerUnreachableError("second"), 6)
    assert str(blame.last_cause) == "second"
    blame.add(A, PeerUnreachableError("third"), 7)
    assert str(blame.last_cause) == "third"


def test_forgiving_the_blameless_changes_nothing() -> None:
    blame = Blame()
    blame.forgive(A, 0)
    assert not blame.is_avoided(A, 0) and blame.last_cause is None
