"""Several trainers of one run, which come and go: exactly once."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from node.runs.stage.leaving import hand_over
from node.training.unit_state import UnitState
from protocols.errors import DiskFullError, NonFiniteGradientError
from protocols.ids import Span
from protocols.units import Blocks, Ends, Unit
from swarm.training.coordinator import Step
from tests.node.runs.toy_swarm import HALVES, NUM, ToySwarm, TrainerProcess, own_batch, toy_swarm, until


async def test_two_trainers_share_each_version_and_one_of_them_coordinates() -> None:
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        trainers = [await swarm.trainer(4) for _ in range(2)]
        await swarm.finished(*trainers)
        swarm.check(4)
    assert [len(one.steps) for one in sorted(trainers, key=lambda one: -len(one.steps))] == [4, 0]
    for version in range(1, 4):
        assert all(any(drawn == version for drawn, _ in one.drawn) for one in trainers), "one of them has computed nothing"
    rows = {one.version: one for one in trainers[0].finished}
    assert list(rows) == [1, 2, 3, 4]
    for other in trainers[1].finished:
        assert other == rows[other.version] and other.num_targets == NUM * 8


async def test_one_trainer_and_one_stage_are_a_run() -> None:
    async with toy_swarm(Span(0, 6)) as swarm:
        trainer = await swarm.trainer(3)
        await swarm.finished(trainer)
        swarm.check(3)
    assert sum(trainer.drawn.values()) == 3 * NUM


def roles(swarm: ToySwarm) -> tuple[TrainerProcess, TrainerProcess]:
    """(the one that coordinates, the other)."""
    first, second = swarm.trainers
    return (first, second) if first.coordinates else (second, first)


async def in_the_middle(swarm: ToySwarm, version: int, timeout_s: float = 120.0) -> None:
    """Some micro-batches of this version are in the sums of all units, and not all are."""

    def num_whole() -> int:
        held = dict[Unit, set[int]]()
        for stage in swarm.stages:
            for unit, state in stage.units.states.items():
                held.setdefault(unit, set()).update(state.num_targets() if state.version == version else ())
        return len(set.intersection(*held.values()))

    await until(lambda: 2 <= num_whole() < NUM - 2, timeout_s)


def slow(moment: str) -> None:
    """A version takes long enough to do something in its middle."""
    if moment == "forward":
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["killed", "left"])
async def test_another_trainer_goes_on_if_the_coordinator_has(how: str) -> None:
    async with toy_swarm() as swarm:
        for span in (*HALVES, *HALVES):
            await swarm.stage(span, slow)
        for _ in range(2):
            await swarm.trainer(4)
        await in_the_middle(swarm, 1)
        leader, other = roles(swarm)
        await (leader.kill() if how == "killed" else leader.leave())
        await until(lambda: other.coordinates)
        await swarm.finished(other)
        swarm.check(4)
    assert [step.version for step in other.steps] == [2, 3, 4]


async def test_a_follower_that_leaves_or_dies_has_its_micro_batches_computed_by_the_other() -> None:
    async with toy_swarm() as swarm:
        for span in (*HALVES, *HALVES):
            await swarm.stage(span, slow)
        leader = await swarm.trainer(5)
        for number, how in enumerate(("killed", "left"), 1):
            follower = await swarm.trainer(5)
            await until(lambda: any(version >= number for version, _ in follower.drawn))  # noqa: B023
            await (follower.kill() if how == "killed" else follower.leave())
        await swarm.finished(leader)
        swarm.check(5)
    assert len(leader.steps) == 5


async def test_all_trainers_leave_and_a_new_one_goes_on_where_the_stages_are() -> None:
    async with toy_swarm() as swarm:
        for span in (*HALVES, *HALVES):
            await swarm.stage(span, slow)
        for _ in range(2):
            await swarm.trainer(3)
        await in_the_middle(swarm, 1)
        for trainer in swarm.trainers:
            await trainer.leave()
        third = await swarm.trainer(3)
        await swarm.finished(third)
        swarm.check(3)
    assert [step.version for step in third.steps] == [2, 3]
    assert sum(version == 1 for version, _ in third.drawn) < NUM, "what the ledgers held was computed again"


async def test_two_that_coordinate_at_once_find_each_other_and_count_nothing_twice() -> None:
    """They share the versions from 1 on, and find each other in the middle of version 4, which does not end before."""
    are_two, is_one = threading.Event(), threading.Event()

    def draw(version: int, index: int) -> None:
        assert version < 1 or are_two.wait(180)
        assert version < 4 or index < NUM - 3 or is_one.wait(180)

    async with toy_swarm() as swarm:
        for span in (*HALVES, *HALVES):
            await swarm.stage(span, slow)
        first = await swarm.trainer(6, draw)
        await until(lambda: first.coordinates)
        swarm.book.is_torn = True
        second = await swarm.trainer(6, draw)
        await until(lambda: second.coordinates)
        are_two.set()
        await in_the_middle(swarm, 4)
        assert len(first.steps) + len(second.steps) > 2
        assert first.coordinates and second.coordinates
        swarm.book.is_torn = False
        lower, higher = sorted((first, second), key=lambda one: one.peer)
        await until(lambda: higher.turns_taken[-1].startswith("works for"))
        is_one.set()
        await swarm.finished(first, second)
        swarm.check(6)
    assert [step.version for step in lower.steps][-2:] == [5, 6]
    assert all(step.version < 5 for step in higher.steps), "both have gone on"


async def test_groups_that_had_agreed_step_though_the_trainer_that_told_the_others_has_died() -> None:
    """One group has stepped, the other one has agreed: no version is lost, and no stage keeps the old one."""
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        first = await swarm.trainer(100)
        apply, told = first.closing.apply, asyncio.Event()

        async def half(version: int, agreed: Any) -> Any:
            if version < 2:
                return await apply(version, agreed)
            ends = [one for one in agreed if Ends() in one.group.units]
            await apply(version, ends)
            told.set()
            await asyncio.Event().wait()

        first.closing.apply = half  # type: ignore[method-assign]
        await asyncio.wait_for(told.wait(), 120)
        await first.kill()
        versions = {state.version for stage in swarm.stages for state in stage.units.states.values()}
        assert versions == {2, 3}
        second = await swarm.trainer(4)
        await swarm.finished(second)
        swarm.check(4)
    assert [step.version for step in second.steps] == [4]


async def test_what_a_group_had_agreed_on_stands_though_its_trainer_has_died() -> None:
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        first = await swarm.trainer(100)
        told = asyncio.Event()

        async def never(version: int, agreed: Any) -> Any:
            told.set()
            await asyncio.Event().wait()

        first.closing.apply = never  # type: ignore[method-assign]
        await asyncio.wait_for(told.wait(), 120)
        await first.kill()
        second = await swarm.trainer(2)
        await swarm.finished(second)
        swarm.check(2)
    assert not any(version == 0 for version, _ in second.drawn), "it was computed again"


async def test_a_loss_that_is_not_finite_stops_every_trainer_at_the_last_good_version() -> None:
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        two = [await swarm.trainer(100) for _ in range(2)]
        await until(lambda: min(len(one.finished) for one in two) >= 1)
        for stage in swarm.stages:
            if stage.stage.span == HALVES[1]:
                stage.stage.poison = own_batch(3, 4).labels
        errors = []
        for trainer in two:
            with pytest.raises(NonFiniteGradientError, match=r"micro-batch 4 of version 3 of toy.*stays at version 3") as caught:
                await swarm.finished(trainer)
            errors.append(caught.value)
        assert errors[0].exit_code == 6
        assert all(state.version == 3 for stage in swarm.stages for state in stage.units.states.values())


async def test_a_stage_that_poisons_is_left_out_and_not_the_run() -> None:
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        swarm.stages[1].stage.poison = "gradient"
        trainer = await swarm.trainer(1)
        await swarm.finished(trainer)
        swarm.check(1)


async def test_a_stage_that_hangs_is_named_and_its_micro_batches_go_another_way() -> None:
    async with toy_swarm(*HALVES, *HALVES) as swarm:
        trainer = await swarm.trainer(4)
        for stage in swarm.stages:
            stage.stage.at = slow
        await in_the_middle(swarm, 2)
        hung, gate = swarm.stages[2], threading.Event()
        hung.stage.at = lambda moment: gate.wait() and None
        hung.goes_on.clear()
        await swarm.finished(trainer)
        gate.set()
        swarm.check(4, [stage for stage in swarm.stages if stage is not hung])
    assert any(hung.peer[-6:] in text for text in trainer.waits)


async def test_a_stage_that_takes_no_more_passes_still_gives_its_sums() -> None:
    async with toy_swarm() as swarm:
        for span in (*HALVES, *HALVES):
            await swarm.stage(span, slow)
        trainer = await swarm.trainer(3)
        await in_the_middle(swarm, 1)
        leaving = swarm.stages[0]
        assert await hand_over(leaving.servicer, leaving.trained)
        assert leaving.units.version == 2
        await leaving.kill()
        await swarm.finished(trainer)
        swarm.check(3, swarm.stages[1:])
    assert trainer.finished[1].num_redone == 0


async def test_stages_may_be_away_for_a_while() -> None:
    async with toy_swarm(HALVES[0]) as swarm:
        trainer = await swarm.trainer(1)
        await until(lambda: any("for block 3 " in text for text in trainer.waits))
        await swarm.stage(HALVES[1])
        await swarm.finished(trainer)
        swarm.check(1)


async def test_versions_that_come_again_after_the_run_went_back_are_shown_again() -> None:
    async with toy_swarm(*HALVES) as swarm:
        trainer = await swarm.trainer(1)
        await swarm.finished(trainer)
        kept = [(stage, stage.units.snapshot(unit)) for stage in swarm.stages for unit in stage.units.states]
        await swarm.finished(trainer.go_on(3))
        for stage, snapshot in kept:
            stage.units.restore(snapshot)
        await swarm.finished(trainer.go_on(4))
        swarm.check(4)
    assert [one.version for one in trainer.finished] == [1, 2, 3, 2, 3, 4]


async def test_what_fails_after_a_step_ends_the_trainer_and_is_not_taken_for_a_failed_step() -> None:
    async with toy_swarm(*HALVES) as swarm:
        trainer = await swarm.trainer(3)

        async def fail(step: Step) -> None:
            raise DiskFullError("no space")

        trainer.after = fail
        with pytest.raises(DiskFullError, match="no space"):
            await swarm.finished(trainer)
        swarm.check(1)
    assert not any("not applied" in text for text in trainer.waits)


async def test_units_that_a_stage_makes_up_do_not_keep_a_version_from_its_end() -> None:
    async with toy_swarm(*HALVES) as swarm:
        boaster = await swarm.stage(HALVES[0])
        boaster.trained.states = {**boaster.units.states, Blocks(40, 41): UnitState(Blocks(40, 41), {})}
        trainer = await swarm.trainer(1)
        await swarm.finished(trainer)
        swarm.check(1)
