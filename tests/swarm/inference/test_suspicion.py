"""Which hop holds a step up, as judged from their reports.

And when a refusal is more than one peer's claim. Pure: no clock, no network.
"""

from __future__ import annotations

import pytest

from protocols.errors import BadRequestError, CheckpointError
from protocols.ids import PeerId
from protocols.inference import Hop
from protocols.progress import Progress
from protocols.units import Blocks
from swarm.inference.client import hearsay, suspicion
from swarm.inference.client.hearsay import Refusal
from swarm.inference.client.suspicion import Kind, Verdict, judge

NEEDED = 5
DONE = Progress(epoch=1, received=5, computed=5, sent=5)
NOTHING = Progress(epoch=1, received=4, computed=4, sent=4)
HAS_IT = Progress(epoch=1, received=5, computed=4, sent=4)
COMPUTES = Progress(epoch=1, received=5, computed=4, sent=4, is_busy=True)
KEEPS = Progress(epoch=1, received=5, computed=5, sent=4)
WAITS_FOR_ITS_PACE = Progress(epoch=1, received=5, computed=5, is_busy=True)
OF_ANOTHER_ROUTE = Progress(epoch=0, received=5, computed=5, sent=5)

CASES = {
    "the first hop denies what we sent": ([NOTHING, NOTHING], Verdict(Kind.IDLE, (0,))),
    "the first hop knows no session": ([Progress(), NOTHING], Verdict(Kind.IDLE, (0,))),
    "the first hop does nothing": ([HAS_IT, NOTHING], Verdict(Kind.IDLE, (0,))),
    "the second hop does nothing": ([DONE, HAS_IT], Verdict(Kind.IDLE, (1,))),
    "one has computed it, and may not begin its new route yet": (
        [DONE, WAITS_FOR_ITS_PACE, Progress()],
        Verdict(Kind.BUSY, (1,)),
    ),
    "one computes": ([DONE, COMPUTES, NOTHING], Verdict(Kind.BUSY, (1,))),
    "one gives no answer": ([DONE, None, NOTHING], Verdict(Kind.SILENT, (1,))),
    "one says sent, the next says never came": ([DONE, DONE, NOTHING], Verdict(Kind.TORN, (1, 2))),
    "the next knows no session": ([DONE, Progress()], Verdict(Kind.TORN, (0, 1))),
    "the next is at an older route": ([DONE, OF_ANOTHER_ROUTE], Verdict(Kind.TORN, (0, 1))),
    "one does not send on, and nothing shows why": ([KEEPS, NOTHING], Verdict(Kind.TORN, (0, 1))),
    "one does not send on, since the next is dead": ([KEEPS, None], Verdict(Kind.SILENT, (1,))),
    "the last one does not answer": ([DONE, KEEPS], Verdict(Kind.IDLE, (1,))),
    "the last one says that it has answered": ([DONE, DONE], Verdict(Kind.IDLE, (1,))),
}


@pytest.mark.parametrize("case", CASES)
def test_where_a_step_is_stuck(case: str) -> None:
    words, verdict = CASES[case]
    assert judge(words, NEEDED, 1) == verdict


def test_an_honest_hop_above_a_swallower_is_never_found_alone() -> None:
    """Whatever the swallower says, those above it that did their part are named with it at most, and those below never."""
    for lie in (NOTHING, HAS_IT, COMPUTES, KEEPS, DONE, OF_ANOTHER_ROUTE, Progress(), None):
        assert 1 in judge([DONE, lie, NOTHING, NOTHING], NEEDED, 1).places
        assert not {3} & set(judge([DONE, lie, NOTHING, NOTHING], NEEDED, 1).places)


def test_a_reply_is_late_after_twenty_times_what_it_should_take_within_limits() -> None:
    assert suspicion.late_s(1.0, 3.0) == 3.0
    assert suspicion.late_s(500.0, 3.0) == 10.0
    assert suspicion.late_s(1e9, 3.0) == suspicion.LONGEST_S
    assert suspicion.work(0) == 1 and suspicion.work(128) == 17


def told(lost: int = -1) -> Progress:
    return Progress(epoch=1, lost=lost)


@pytest.mark.parametrize(
    ("words", "accusers"),
    [
        ([told(3), told(3), told(3), told()], (2,)),  # the neighbour began it
        ([told(3), told(), told(), told()], (0, 1)),  # the first made it up, or the second denies what it said
        ([told(), told(), told(), told()], (0, 1)),  # the first told us, whatever it says
        ([told(3), told(3), None, told()], (1, 2)),
    ],
)
def test_who_may_have_made_up_a_loss(words: list[Progress | None], accusers: tuple[int, ...]) -> None:
    assert suspicion.accusers(words, 3) == accusers


def test_an_accused_hop_that_has_given_up_or_is_silent_was_not_framed() -> None:
    assert suspicion.has_said_it_itself(None) and suspicion.has_said_it_itself(Progress(epoch=1, has_given_up=True))
    assert not suspicion.has_said_it_itself(told()) and not suspicion.has_said_it_itself(Progress())


# --- refusals


def said(*names: str, cause: BadRequestError | CheckpointError | None = None) -> Refusal:
    return Refusal(cause or BadRequestError("no"), frozenset(map(PeerId, names)))


def test_a_refusal_that_was_passed_on_may_be_any_of_the_hops_above() -> None:
    route = tuple(Hop(PeerId(name), (), b"", Blocks(at, at + 1)) for at, name in enumerate("abc"))
    assert hearsay.sayers(route, 1, is_told=True) == {"a", "b"} and hearsay.sayers(route, 2, is_told=False) == {"c"}


def test_only_words_that_nobody_could_have_said_for_another_agree() -> None:
    assert hearsay.AGREED == 3
    assert hearsay.is_agreed([said("a"), said("b"), said("c")])
    assert not hearsay.is_agreed([said("a"), said("b")])
    assert not hearsay.is_agreed([said("a"), said("a"), said("a")])
    assert not hearsay.is_agreed([said("a", "x"), said("a", "y"), said("a", "z"), said("b")])
    assert not hearsay.is_agreed([said("a", cause=CheckpointError("no")), said("b"), said("c")])
