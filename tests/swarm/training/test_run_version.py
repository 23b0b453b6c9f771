"""Which version a run is at, after deaths of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kept import Kept
from protocols.units import Blocks, Ends, Unit
from swarm.training.run_version import Going, Lost, Restoring, Verdict, Versions, judge, reach

A, B, C = Blocks(0, 1), Blocks(1, 2), Ends()
UNITS: tuple[Unit, ...] = (A, B, C)


def kept(version: int) -> Kept:
    return Kept(version=version, chains=dict.fromkeys(UNITS, bytes(32)))


def stage(a: int | None, b: int | None, c: int | None) -> Versions:
    return {unit: version for unit, version in zip(UNITS, (a, b, c), strict=True) if version is not None}


CASES: dict[str, tuple[list[Versions], list[Kept], Verdict | None]] = {
    "no stage": ([], [kept(30)], None),
    "a new run": ([stage(0, 0, 0)], [], Going(version=0)),
    "all are at one version": ([stage(7, None, 7), stage(None, 7, 7)], [kept(6)], Going(version=7)),
    "a newcomer has none yet": ([stage(7, 7, 7), stage(0, 0, 0)], [kept(6)], Going(version=7)),
    "one stage is ahead alone, of another history": ([stage(7, 7, 7), stage(9, None, None)], [kept(6)], Going(version=7)),
    "all were killed": ([stage(0, 0, None), stage(None, None, 0)], [kept(3), kept(30)], Restoring(kept=kept(30))),
    "all were killed, some are restored": ([stage(30, 30, None), stage(None, None, 0)], [kept(30)], Restoring(kept=kept(30))),
    "all were killed, a unit has no stage yet": ([stage(0, 0, None)], [kept(30)], Restoring(kept=kept(30))),
    "restored but for a unit that has no stage": ([stage(30, 30, None)], [kept(30)], Going(version=30)),
    "a unit has no stage": ([stage(35, 35, None)], [kept(30)], Going(version=35)),
    "a unit has newcomers only": (
        [stage(35, 35, None), stage(None, None, 30)], [kept(30)], Lost(kept=kept(30), unit=C, version=30, highest=35),
    ),
    "the same, and some have gone back": (
        [stage(35, None, None), stage(None, 30, 30)], [kept(30)], Lost(kept=kept(30), unit=B, version=30, highest=35),
    ),
    "the same, and all have gone back but a replica": (
        [stage(35, None, None), stage(30, None, None), stage(None, 30, 30)], [kept(30)], Going(version=30),
    ),
    "a step is half applied": (
        [stage(36, 36, None), stage(None, None, 35)], [kept(30)], Lost(kept=kept(30), unit=C, version=35, highest=36),
    ),
    "a unit is lost before the first checkpoint": (
        [stage(2, 2, None), stage(None, None, 0)], [], Lost(kept=None, unit=C, version=0, highest=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_has_to_do(name: str) -> None:
    stages, checkpoints, expected = CASES[name]
    assert judge(stages, checkpoints, UNITS) == expected
    if isinstance(expected, Lost):
        assert expected.is_half_applied is (name == "a step is half applied")


versions = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 5), min_size=1)


@given(st.lists(versions, max_size=4), st.lists(st.integers(1, 5).map(kept), max_size=2))
def test_a_run_is_taken_back_only_if_it_cannot_go_on_and_every_verdict_can_be_followed(
    stages: list[Versions], checkpoints: list[Kept]
) -> None:
    found = judge(stages, checkpoints, UNITS)
    has = {unit: {one[unit] for one in stages if unit in one} for unit in UNITS}
    latest = max((max(one.values()) for one in stages), default=0)
    match found:
        case None:
            assert not stages
        case Going(version=version):
            assert any(version in one.values() for one in stages)
        case Restoring(kept=one):
            assert one in checkpoints and one.version >= latest
        case Lost() as lost:
            assert not set.intersection(*has.values()) or max(set.intersection(*has.values())) < lost.kept.version  # type: ignore[union-attr]
            assert lost.version == max(has[lost.unit]) < lost.highest == latest
            assert lost.kept is None or lost.kept in checkpoints


def test_a_later_state_counts_only_as_far_as_the_whole_run_can_come() -> None:
    """A stage that missed the way back must not draw its replicas into a history that the others have lost."""
    old, gone_back = stage(17, 17, None), stage(10, 10, 10)
    assert reach([old, gone_back], [kept(10)], UNITS) == 10
    assert reach([stage(18, None, 18), stage(None, 17, None)], [kept(10)], UNITS) == 17
    assert reach([stage(0, 0, 0)], [kept(10)], UNITS) == 10
    assert reach([stage(4, 4, None)], [], UNITS) == 4, "a unit that no peer has is left out"
    assert reach([], [], UNITS) == 0
