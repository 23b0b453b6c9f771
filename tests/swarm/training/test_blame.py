"""Stages at fault, micro-batches at fault, late ones."""

from __future__ import annotations

import pytest

from protocols.errors import DrainingError, NonFiniteGradientError, NonsenseError
from protocols.ids import PeerId
from swarm.clock import Clock
from swarm.training.arrivals import Arrivals
from swarm.training.blame import BLAMED_S, Blame

A, B, C, D = (PeerId(name) for name in "abcd")


class Times:
    now_s = 100.0


def blame() -> tuple[Blame, Times]:
    times = Times()
    return Blame(Clock(now_s=lambda: times.now_s)), times


def test_a_stage_that_leaves_is_left_out_alone_and_for_a_while() -> None:
    own, times = blame()
    own.note(3, 0, (A, B), DrainingError("leaves"))
    assert own.left_out() == ({A}, {A})
    times.now_s += BLAMED_S
    assert own.left_out() == (frozenset(), frozenset())


def test_of_two_neighbours_both_are_suspected_and_one_is_left_out() -> None:
    own, _ = blame()
    own.note(3, 1, (A, B, C), NonsenseError("a gradient that cannot be used"))
    assert own.left_out() == ({A, B}, {B})
    own.note(4, 0, (A, B, C), NonFiniteGradientError("a norm without bounds"))
    assert own.left_out() == ({A, B}, {B})
    assert not own.is_at_fault(3, has_other_way=False) and not own.is_at_fault(4, has_other_way=False)


def test_a_stage_that_is_left_out_is_told_once_until_it_may_come_back() -> None:
    times, told = Times(), list[tuple[PeerId, str]]()
    own = Blame(Clock(now_s=lambda: times.now_s), lambda peer, cause: told.append((peer, str(cause))))
    own.note(3, 0, (A, B), DrainingError("leaves"))
    for index in range(3):
        own.note(index, 1, (A, B), NonsenseError("cannot be used"))
    assert told == [(B, "cannot be used")], "a stage that leaves is no news of this kind"
    times.now_s += BLAMED_S
    own.note(9, 0, (A, B), NonFiniteGradientError("the loss is nan"))
    assert told[1:] == [(B, "the loss is nan")]


def test_a_micro_batch_is_at_fault_if_stages_that_have_nothing_in_common_say_so() -> None:
    own, _ = blame()
    own.note(3, 1, (A, B), NonFiniteGradientError("the loss is nan"))
    assert not own.is_at_fault(3, has_other_way=True), "another stage is asked first"
    assert own.is_at_fault(3, has_other_way=False), "there is no other stage"
    own.note(3, 1, (A, C), NonFiniteGradientError("the loss is nan"))
    assert own.is_at_fault(3, has_other_way=True) and own.last_word(3) == "the loss is nan"
    assert not own.is_at_fault(4, has_other_way=False)
    own.begin()
    assert not own.is_at_fault(3, has_other_way=False)


@pytest.mark.parametrize(
    ("seconds", "limit_s"), [((), None), ((2.0,), 4.0), ((1.0, 1.0, 1.0, 90.0), 2.0), ((1.0, 2.0, 3.0), 7.0)]
)
def test_a_micro_batch_is_late_five_deviations_beyond_the_median(seconds: tuple[float, ...], limit_s: float | None) -> None:
    arrivals = Arrivals()
    for one in seconds:
        arrivals.add(one)
    assert arrivals.limit_s() == (None if limit_s is None else pytest.approx(limit_s))
