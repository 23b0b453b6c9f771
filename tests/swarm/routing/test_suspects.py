"""Two peers that contradict each other are both avoided for a while.

No clock runs here.
"""

from __future__ import annotations

from protocols.defaults import AVOID_S
from protocols.ids import PeerId
from swarm.routing.suspects import FORGET_S, MAX_SUSPECT_S, Suspects

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_a_suspicion_ends_by_itself() -> None:
    suspects = Suspects()
    suspects.add(A, B, 0)
    assert suspects.strikes(A, AVOID_S - 0.01) == 1 and suspects.strikes(A, AVOID_S) == 0 and suspects.strikes(B, 0) == 0


def test_one_broken_connection_is_one_strike_however_many_sessions_tell_of_it() -> None:
    suspects = Suspects()
    for moment in range(9):
        suspects.add(A, B, moment)
    assert suspects.strikes(A, 9) == 1 and suspects.strikes(A, 8 + AVOID_S) == 0


def test_each_further_dispute_is_a_strike_and_lasts_longer_up_to_a_limit() -> None:
    suspects = Suspects()
    suspects.add(A, B, 0)
    suspects.add(A, C, 0)
    assert suspects.strikes(A, 1.5 * AVOID_S) == 2
    for number in range(20):
        suspects.add(A, PeerId(str(number)), 0)
    assert suspects.strikes(A, MAX_SUSPECT_S - 1) == 22 and suspects.strikes(A, MAX_SUSPECT_S) == 0


def test_an_answer_ends_it_and_the_next_dispute_counts_more() -> None:
    suspects = Suspects()
    suspects.add(A, B, 0)
    suspects.clear(A, 1)
    suspects.clear(C, 1)
    assert suspects.strikes(A, 2) == 0
    suspects.add(A, C, 3)
    assert suspects.strikes(A, 3) == 2


def test_what_was_long_ago_is_forgotten() -> None:
    suspects = Suspects()
    suspects.add(A, B, 0)
    suspects.add(B, A, FORGET_S)
    assert list(suspects._suspicions) == [B]
