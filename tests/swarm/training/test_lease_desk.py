"""The desk leases every index until it is reported."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols.ids import ModelId, PeerId
from protocols.leases import Done, Finished, LeaseAnswer, LeaseRequest
from swarm.clock import SYSTEM, Clock
from swarm.training.lease_desk import GRACE_S, LEAST_LEASE_S, LeaseDesk

RUN = ModelId("toy", "ab" * 32)
ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")


def ask(desk: LeaseDesk, peer: PeerId, wanted: int = 0, running: tuple[int, ...] = (), done: tuple[int, ...] = (), version: int = 7,
        shown: int = 0) -> LeaseAnswer:  # fmt: skip
    reports = tuple(Done(index=index, loss_sum=1.0, num_targets=2) for index in done)
    return desk.answer(peer, LeaseRequest(run=RUN, version=version, done=reports, running=running, wanted=wanted, shown=shown))


def finished(version: int) -> Finished:
    return Finished(
        version=version, loss_sum=1.0, num_targets=2, seconds=1, closing_s=0, num_stages=1, num_bytes=0, num_redone=0
    )  # fmt: skip


def test_what_a_trainer_does_not_name_any_more_is_leased_to_another_which_asks_the_ledgers_first() -> None:
    desk = LeaseDesk(ME, SYSTEM, lambda: 8)
    desk.begin(7, range(4), is_again=False)
    assert (first := ask(desk, A, wanted=3)).indices == (0, 1, 2) and not first.is_again
    ask(desk, A, running=(1,), done=(0,))
    second = ask(desk, B, wanted=4)
    assert set(second.indices) == {2, 3} and second.is_again
    assert (desk.loss_sum, desk.num_targets) == (1.0, 2)


def test_a_new_coordinator_hears_first_what_the_others_have_in_hand() -> None:
    times = [50.0]
    desk = LeaseDesk(ME, Clock(now_s=lambda: times[0]), lambda: 8)
    desk.begin(7, range(6), is_again=True, awaited=[A, B])
    assert ask(desk, ME, wanted=2).indices == ()
    assert ask(desk, A, wanted=1, running=(4, 5)).indices == ()
    times[0] += GRACE_S
    assert ask(desk, ME, wanted=8).indices == (0, 1, 2, 3), "half the window, since two are there: B has not answered"
    assert ask(desk, A, wanted=8, running=(4, 5)).indices == ()


async def test_a_trainer_without_work_waits_for_the_next_version_and_is_told_what_is_finished() -> None:
    desk = LeaseDesk(ME, SYSTEM, lambda: 8)
    desk.begin(7, [0], is_again=False)
    ask(desk, ME, wanted=1)
    waiting = asyncio.create_task(desk.reply(A, LeaseRequest(run=RUN, version=7, wanted=2, shown=7)))
    await asyncio.sleep(0)
    assert not waiting.done()
    ask(desk, ME, done=(0,))
    await desk.all_done()
    last = finished(8)
    desk.finish(last)
    assert (await waiting).finished == (last,)
    desk.begin(8, [0, 1], is_again=False)
    answer = await desk.reply(A, LeaseRequest(run=RUN, version=7, wanted=2, shown=8))
    assert (answer.version, answer.indices, answer.finished) == (8, (0, 1), ())


def test_versions_that_a_run_has_gone_back_from_are_told_no_more() -> None:
    desk = LeaseDesk(ME, SYSTEM, lambda: 8)
    for version in (7, 8):
        desk.begin(version, [0], is_again=False)
        desk.finish(finished(version + 1))
    desk.begin(8, [0], is_again=False)
    assert [one.version for one in ask(desk, A, version=8, shown=7).finished] == [8]


class Machine(RuleBasedStateMachine):
    """Trainers die, forget, and report late; answers are lost. An index is in one trainer's hands at a time, and none is forgotten."""

    @initialize(num=st.integers(1, 6))
    def begin(self, num: int) -> None:
        self.now_s, self.num = 0.0, num
        self.desk = LeaseDesk(ME, Clock(now_s=lambda: self.now_s), lambda: 6)
        self.desk.begin(7, range(num), is_again=False)
        self.hands: dict[PeerId, set[int]] = {ME: set(), A: set(), B: set()}

    @rule(peer=st.sampled_from([ME, A, B]), wanted=st.integers(0, 3), is_lost=st.booleans(), data=st.data())
    def ask(self, peer: PeerId, wanted: int, is_lost: bool, data: st.DataObject) -> None:
        hand = self.hands[peer]
        done = set(data.draw(st.lists(st.sampled_from(sorted(hand)), unique=True))) if hand else set()
        hand -= done
        answer = ask(self.desk, peer, wanted=wanted, running=tuple(hand), done=tuple(done))
        if not is_lost:
            hand |= set(answer.indices)

    @rule(peer=st.sampled_from([A, B]))
    def die(self, peer: PeerId) -> None:
        self.hands[peer] = set()
        self.desk.drop(peer)

    @rule(step_s=st.floats(0, 2 * LEAST_LEASE_S))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @invariant()
    def nothing_is_forgotten(self) -> None:
        if hasattr(self, "desk"):
            table = self.desk._table
            free = set(table._free)
            held = {index for peer in self.hands for index in table.held_by(peer)}
            assert not free & held and free | held | self.desk._done.keys() >= set(range(self.num))


TestDesk = Machine.TestCase
TestDesk.settings = settings(max_examples=40, stateful_step_count=25)
