"""One network fills the free places, and pushes out no other."""

from __future__ import annotations

from protocols.ids import peer_id_of
from swarm import recent
from swarm.dht.address import PeerAddress
from swarm.meeting.bootstrap import _MAX_MET, NOBODY_ELSE, Finder
from swarm.recent import MAX_PER_PREFIX

MOST = 8


def test_the_last_ones_stay_and_one_that_comes_again_is_the_last() -> None:
    book = {key: 0 for key in "ab"}
    for key in "caefghij":
        recent.note(book, key, 1, MOST)
    assert "".join(book) == "caefghij" and set(book.values()) == {1}


def test_a_network_keeps_its_part_of_the_others() -> None:
    book: dict[str, None] = {}
    honest = ["a1", "b1", "c1", "d1"]
    for key in [*honest, *(f"x{number}" for number in range(20))]:
        recent.note(book, key, None, MOST, lambda key: key[0])
    assert list(book) == [*honest, "x16", "x17", "x18", "x19"]
    for key in ("e1", "f1"):
        recent.note(book, key, None, MOST, lambda key: key[0])
    assert list(book)[:2] == ["c1", "d1"], "none has more than its part, so the first ones go"
    assert sum(key[0] == "x" for key in book) == MAX_PER_PREFIX


def test_a_host_with_many_names_pushes_out_none_that_a_peer_has_met() -> None:
    def address(host: str, number: int) -> PeerAddress:
        return PeerAddress("ip4", host, 4001, peer_id_of(number.to_bytes(32)))

    finder = Finder(NOBODY_ELSE, peer_id_of(bytes(32)), None)
    honest = [address(f"192.168.{number}.7", number) for number in range(1, 4)]
    finder.note_answering(honest)
    finder.note_answering(address("8.8.8.8", number) for number in range(1_000, 1_000 + 2 * _MAX_MET))
    assert set(honest) < set(finder.remembered()) and len(finder.remembered()) == _MAX_MET
