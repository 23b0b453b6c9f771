"""Leases: every index is in one trainer's hands, or comes back."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols.ids import PeerId
from swarm.training.leases import Leases

A, B = PeerId("a"), PeerId("b")


def test_an_index_is_leased_to_one_trainer_at_a_time() -> None:
    leases = Leases(range(5), lease_s=10)
    assert list(leases.take(A, 3, now_s=0)) == [0, 1, 2]
    assert list(leases.take(B, 3, now_s=0)) == [3, 4]
    assert list(leases.take(A, 3, now_s=0)) == []


def test_an_index_that_is_not_reported_in_time_is_leased_again() -> None:
    leases = Leases(range(2), lease_s=10)
    leases.take(A, 2, now_s=0)
    leases.report(1)
    assert leases.next_expiry_s() == 10
    assert list(leases.take(B, 2, now_s=9.9)) == []
    assert list(leases.take(B, 2, now_s=10)) == [0]
    leases.report(0)
    assert leases.is_done


def test_what_a_trainer_had_that_has_gone_is_leased_at_once() -> None:
    leases = Leases(range(3), lease_s=10)
    leases.take(A, 2, now_s=0)
    leases.drop(A)
    assert set(leases.take(B, 3, now_s=0)) == {0, 1, 2}


class Machine(RuleBasedStateMachine):
    """No index is lost: each is free, leased or reported, and the version is done when all are reported."""

    @initialize(num=st.integers(1, 6))
    def begin(self, num: int) -> None:
        self.leases, self.num, self.now_s = Leases(range(num), lease_s=5), num, 0.0
        self.reported: set[int] = set()
        self.taken: set[int] = set()

    @rule(trainer=st.sampled_from([A, B]), count=st.integers(1, 3))
    def take(self, trainer: PeerId, count: int) -> None:
        taken = set(self.leases.take(trainer, count, self.now_s))
        assert not taken & self.reported
        self.taken |= taken

    @rule(step_s=st.floats(0, 6))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        if self.taken:
            index = data.draw(st.sampled_from(sorted(self.taken)))
            self.leases.report(index)
            self.reported.add(index)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.reported:
            index = data.draw(st.sampled_from(sorted(self.reported)))
            self.leases.give_back(index)
            self.reported.discard(index)

    @rule(trainer=st.sampled_from([A, B]))
    def leave(self, trainer: PeerId) -> None:
        self.leases.drop(trainer)

    @invariant()
    def done_means_reported(self) -> None:
        if hasattr(self, "leases"):
            assert self.leases.is_done == (len(self.reported) == self.num)


TestLeases = Machine.TestCase
