"""A majority of the peers asked decides whether our clock is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import NoRouteError, OverloadedError
from protocols.ids import PeerId
from swarm.meeting.clocks import MAX_PEERS, TOLERATED_S, Clocks, judged

PEERS = [PeerId(f"12D3KooW{number:06}") for number in range(64)]


def test_a_clock_that_most_disagree_with_is_wrong_and_the_difference_is_their_median() -> None:
    fault = judged(dict(zip(PEERS, (-118.0, -120.0, -125.0, 3.0), strict=False)))
    assert fault.startswith("this machine's clock is 120 s behind that of peer ") and "2 of 3 other peers" in fault
    assert "timedatectl" in fault
    assert "is 90 s ahead of that of peer" in judged({PEERS[0]: 90.0})


@pytest.mark.parametrize("liars", [1, 2])
def test_a_minority_convinces_nobody(liars: int) -> None:
    honest = {peer: 1.5 for peer in PEERS[:3]}
    assert judged(honest | {peer: 1e9 for peer in PEERS[3 : 3 + liars]}) == ""
    assert judged({PEERS[0]: 1e9, PEERS[1]: -1e9}) == ""  # they contradict each other


@given(st.dictionaries(st.sampled_from(PEERS), st.floats(-TOLERATED_S, TOLERATED_S), max_size=20))
def test_small_differences_are_nobodys_fault(ahead_s: dict[PeerId, float]) -> None:
    assert judged(ahead_s) == ""


def test_the_way_to_a_peer_and_back_does_not_count_and_few_are_remembered() -> None:
    now = [1_000.0]
    clocks = Clocks(lambda: now[0])
    for number, peer in enumerate(PEERS):
        now[0] = 1_000.0 + number * 10 + 50  # it took 50 s, and the peer read its clock after 25
        clocks.note(peer, 1_000.0 + number * 10, 1_000.0 + number * 10 + 25)
    assert clocks.fault == "" and len(clocks._ahead_s) == MAX_PEERS
    clocks.note(PEERS[0], now[0], 0.0)  # says nothing of its time
    assert PEERS[0] not in clocks._ahead_s


def test_only_errors_that_a_wrong_clock_explains_are_put_down_to_it() -> None:
    clocks = Clocks(lambda: 1_000.0)
    with pytest.raises(NoRouteError, match=r"^no peer serves it$"), clocks.explaining():
        raise NoRouteError("no peer serves it")
    clocks.note(PEERS[0], 1_000.0, 880.0)
    with pytest.raises(NoRouteError, match=r"^this machine's clock is 120 s ahead.*\(no peer serves it\)$"), clocks.explaining():
        raise NoRouteError("no peer serves it")
    with pytest.raises(OverloadedError, match=r"^full$"), clocks.explaining():
        raise OverloadedError("full")
