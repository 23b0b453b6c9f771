"""Trainers that hear each other end with one that coordinates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerId
from swarm.training.election import Heard, elect, gives_way

PEERS = [PeerId(name) for name in "abcde"]


def test_a_trainer_works_for_the_one_that_coordinates_even_if_its_own_id_is_lower() -> None:
    heard = [Heard(peer=PeerId("c"), coordinator=PeerId("c")), Heard(peer=PeerId("b"), coordinator=PeerId("c"))]
    assert elect(PeerId("a"), heard) == "c"
    assert elect(PeerId("d"), [*heard, Heard(peer=PeerId("b"), coordinator=PeerId("b"))]) == "b"


def test_without_a_coordinator_the_lowest_begins_and_the_others_wait() -> None:
    heard = [Heard(peer=peer, coordinator=None) for peer in PEERS[1:]]
    assert elect(PEERS[0], heard) == PEERS[0]
    assert elect(PEERS[4], [Heard(peer=PEERS[0], coordinator=PeerId("dead"))]) is None
    assert elect(PEERS[4], []) == PEERS[4]


@given(st.data())
def test_trainers_that_hear_each_other_end_with_one_coordinator(data: st.DataObject) -> None:
    """Each looks in any order, any number of times; what it hears is true at that moment, but may lack peers at first."""
    works_for: dict[PeerId, PeerId | None] = dict.fromkeys(PEERS)

    def look(me: PeerId, heard_peers: list[PeerId]) -> None:
        heard = [Heard(peer=peer, coordinator=works_for[peer]) for peer in heard_peers if peer != me]
        if works_for[me] == me:
            if gives_way(me, heard):
                works_for[me] = None
            return
        found = works_for[me]
        if found is None or works_for[found] != found:
            works_for[me] = elect(me, heard)

    for me in data.draw(st.lists(st.sampled_from(PEERS), max_size=20)):
        look(me, data.draw(st.lists(st.sampled_from(PEERS), unique=True)))
    for _ in range(3):
        for me in data.draw(st.permutations(PEERS)):
            look(me, PEERS)
    coordinating = {peer for peer in PEERS if works_for[peer] == peer}
    assert len(coordinating) == 1 and set(works_for.values()) == coordinating
