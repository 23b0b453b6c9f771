"""Who may have a stage hold a version, and when."""

from __future__ import annotations

import pytest

from node.runs.stage.hold_turns import HoldTurns
from protocols.errors import OverloadedError
from tests.node.training.toy_run import new_identity

TRAINER, OTHER = new_identity().peer_id, new_identity().peer_id


def may(turns: HoldTurns, caller: str, now_s: float) -> bool:
    try:
        turns.check(caller, now_s)
    except OverloadedError:
        return False
    return True


def test_a_fifth_of_the_time_at_most_goes_into_holding() -> None:
    turns = HoldTurns()
    assert may(turns, TRAINER, 0.0)
    turns.held(3.0, 10.0)
    assert not may(turns, TRAINER, 21.9) and not may(turns, OTHER, 21.9)
    assert may(turns, TRAINER, 22.0) and may(turns, OTHER, 22.0)


def test_a_caller_whose_version_the_others_do_not_hold_has_to_wait_and_others_have_not() -> None:
    turns = HoldTurns()
    turns.failed(OTHER, 10.0)
    assert may(turns, TRAINER, 10.0)
    with pytest.raises(OverloadedError, match=r"59\.0 s"):
        turns.check(OTHER, 11.0)
    assert may(turns, OTHER, 70.0)
    turns.failed(TRAINER, 80.0)
    assert turns._refused.keys() == {TRAINER}, "who has waited is forgotten"
