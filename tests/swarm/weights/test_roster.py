"""Places of sources: which peer gets, waits for or loses one.

Clocks are numbers here.
"""

from __future__ import annotations

from protocols.identity import from_seed
from protocols.records import PeerRecord
from swarm.weights.reputation import Reputation
from swarm.weights.roster import EXPLORE_S, JUDGED_S, MAX_TRIAL_S, PAUSE_S, SLOWEST_BYTES_S, TRIAL_S, Roster

A, B, C, D = (PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id) for number in range(1, 5))


def roster(most: int, *known: PeerRecord) -> Roster:
    made = Roster(Reputation(), most)
    made.know(known)
    return made


def busy(peer: object) -> bool:
    return False


def test_places_go_in_order_and_one_more_only_if_asked_for() -> None:
    made = roster(2, A, B, C, D)
    assert made.next(0.0) == [A, B]
    made.open(A.peer, 0.0)
    made.open(B.peer, 0.0)
    assert made.next(0.0) == [] and made.next(0.0, extra=1) == [C] and made.waiting(0.0) == [C, D]
    made.open(C.peer, 0.0)
    made.open(D.peer, 0.0)
    made.know([A, B, C, D, PeerRecord(peer=from_seed(bytes([9]) * 32).peer_id)])
    assert made.next(0.0, extra=1) == [], "twice as many as there should be is the end"


def test_who_fails_waits_twice_as_long_each_time_and_a_liar_for_ever() -> None:
    made = roster(1, A, B)
    for pause_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S):
        made.open(A.peer, 0.0)
        made.close(A.peer, 0.0, has_failed=True)
        assert made.waiting(0.9 * pause_s) == [B] and made.waiting(pause_s) == [B, A]
    made.open(B.peer, 0.0)
    made.refuse(B.peer)
    assert made.waiting(1e9) == [A]


def test_the_silent_gives_way_after_its_trial_only_to_one_that_waits_and_has_twice_the_time_then() -> None:
    alone, made = roster(1, A), roster(1, A, B)
    for one in (alone, made):
        one.open(A.peer, 0.0)
    assert alone.giving_way(10 * TRIAL_S, busy) == []
    assert made.giving_way(0.9 * TRIAL_S, busy) == [] and made.giving_way(1.1 * TRIAL_S, lambda peer: True) == []
    assert made.giving_way(1.1 * TRIAL_S, busy) == [A.peer]
    for one in (A, B):
        made.open(one.peer, -100.0)
        made.close(one.peer, -100.0, has_failed=True)
    made.open(A.peer, 0.0)
    assert made.giving_way(1.1 * TRIAL_S, busy) == [] and made.giving_way(2.1 * TRIAL_S, busy) == [A.peer]
    for one in (A, B) * 20:
        made.open(one.peer, -1_000.0)
        made.close(one.peer, -1_000.0, has_failed=True)
    made.open(A.peer, 0.0)
    assert made.giving_way(MAX_TRIAL_S + 1, busy) == [A.peer], "the trial has a bound"


def test_who_has_failed_often_has_no_longer_trial_while_another_waits_that_has_not() -> None:
    """Silent sources that had been asked for the manifest and the files before kept all places for 16 s and more."""
    made = roster(2, A, B, C)
    for one in (A, B) * 5:
        made.open(one.peer, -1_000.0)
        made.close(one.peer, -1_000.0, has_failed=True)
    assert made.next(0.0) == [C, A]
    for one in (A, B):
        made.open(one.peer, 0.0)
    assert made.giving_way(1.1 * TRIAL_S, busy) in ([A.peer], [B.peer])


def test_the_slow_gives_way_and_what_was_long_ago_counts_half() -> None:
    made = roster(2, A, B, C)
    for one in (A, B):
        made.open(one.peer, 0.0)
    now_s = 0.0
    while now_s < JUDGED_S + 2:
        now_s += 1.0
        made.heard(A.peer, 2 * SLOWEST_BYTES_S, now_s)
        made.heard(B.peer, SLOWEST_BYTES_S // 2, now_s)
    made._explored_s = now_s
    assert made.giving_way(now_s, busy) == [B.peer]
    for _ in range(int(3 * JUDGED_S)):  # the other way round from now on
        now_s += 1.0
        made.heard(A.peer, SLOWEST_BYTES_S // 4, now_s)
        made.heard(B.peer, 2 * SLOWEST_BYTES_S, now_s)
    made._explored_s = now_s
    assert made.giving_way(now_s, busy) == [A.peer]


def test_now_and_then_the_slowest_good_source_is_replaced_by_one_never_tried() -> None:
    made = roster(2, A, B, C)
    now_s = 2 * EXPLORE_S - JUDGED_S / 2
    for one, factor in ((A, 9), (B, 5)):
        made.open(one.peer, 0.0)
        made.heard(one.peer, factor * SLOWEST_BYTES_S * int(now_s), now_s)
    assert made.giving_way(now_s, busy) == [B.peer] and made.giving_way(now_s + 1, busy) == []


def test_a_roster_that_is_vacated_gives_all_places_anew() -> None:
    made = roster(2, A, B, C)
    for one in (A, B):
        made.open(one.peer, 0.0)
    made.vacate()
    assert made.next(0.0) == [A, B] and made.giving_way(1e9, busy) == []
