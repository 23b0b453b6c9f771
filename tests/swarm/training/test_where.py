"""At which version a run is; which stages are asked."""

from __future__ import annotations

from protocols.ids import PeerId
from protocols.parts_of_units import parts_of
from protocols.records import PeerRecord
from protocols.run_status import RunStatus, UnitStatus
from protocols.units import Blocks, Ends, Unit
from swarm.clock import Clock
from swarm.training.members import STATUS_S, Silences, Stage, progress_of
from swarm.training.where import Where, where

A, B, ENDS = Blocks(0, 1), Blocks(1, 2), Ends()


def stage(name: str, versions: dict[Unit, int], *, held: int = 0, is_behind: bool = False) -> Stage:
    units = tuple(
        UnitStatus(unit=unit, version=version, chain=bytes(32) if version else b"",
                   ledger=dict.fromkeys(parts_of(unit), held))
        for unit, version in versions.items()
    )  # fmt: skip
    return Stage(PeerRecord(peer=PeerId(name)), RunStatus(num_micro_batches=8, units=units, is_catching_up=is_behind))


def test_a_stage_that_is_behind_catches_up_and_units_that_no_stage_has_stepped_are_unfinished() -> None:
    whole = stage("a", {A: 7, B: 7, ENDS: 7})
    assert where([]) == Where(version=None)
    assert where([whole, stage("b", {B: 6})]) == Where(version=7)
    assert where([stage("a", {A: 7, ENDS: 7}), stage("b", {B: 6})]) == Where(version=7, unfinished=frozenset({B}))
    assert where([stage("a", {A: 7, ENDS: 7}), stage("b", {B: 0}, is_behind=True)]) == Where(version=7)
    assert where([stage("a", {A: 7, ENDS: 7}), stage("b", {B: 3})]) == Where(version=7), "its state comes from others"


def test_what_sums_of_another_version_hold_does_not_count() -> None:
    stages = [stage("a", {A: 7, ENDS: 7}, held=0b0111), stage("b", {B: 7}, held=0b0101), stage("c", {B: 6}, held=0b1111)]
    progress = progress_of(stages, 7, 4, 2)
    assert progress.missing() == [1, 3] and progress.holders_of(1) == {"a"}
    progress.compare(PeerId("a"), stage("a", {A: 7, ENDS: 7}, held=0b0011).held(7))
    assert progress.missing() == [1, 2, 3], "it says now that it lacks one"
    assert progress_of([], 7, 4, 2).is_empty


def test_a_stage_that_does_not_answer_is_asked_again_later_each_time_or_at_another_address() -> None:
    times = [0.0]
    silences = Silences(Clock(now_s=lambda: times[0]))
    old = PeerRecord(peer=PeerId("a"), addresses=("10.0.0.1:1",))
    silences.note(old)
    assert silences.is_silent(old) and not silences.is_silent(PeerRecord(peer=PeerId("a"), addresses=("10.0.0.1:2",)))
    times[0] = STATUS_S
    assert not silences.is_silent(old)
    silences.note(old)
    times[0] = 2 * STATUS_S
    assert silences.is_silent(old)
    silences.end(old)
    assert not silences.is_silent(old)
