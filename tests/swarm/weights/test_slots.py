"""Places of an uploader are fair by network and peer.

A stream keeps its place by taking bytes; a useless one gives way only if another waits. Pure.
"""

from __future__ import annotations

import pytest

from protocols.errors import OverloadedError
from protocols.identity import from_seed
from protocols.ids import PeerId
from swarm.weights.slots import (
    IDLE_S,
    JUDGED_S,
    MAX_UPLOADS_PER_PEER,
    MAX_WAITING,
    SHORTEST_PAUSE_S,
    SHUNNED_S,
    SLOW_BYTES_S,
    TURN_S,
    Slot,
    Slots,
)


def peer(number: int) -> PeerId:
    return from_seed(number.to_bytes(32, "big")).peer_id


def take(slot: Slot, num_bytes: int, now_s: float) -> None:
    slot.offered(num_bytes)
    slot.took(now_s)


class Places:
    """Slots, and the streams that had to leave."""

    def __init__(self, most: int) -> None:
        self.slots, self.ended = Slots(most), list[Slot]()

    def come(self, number: int, network: str, now_s: float) -> Slot:
        slot = Slot(peer(number), network, lambda: self.ended.append(slot), now_s)
        self.slots.wait(slot)
        return slot

    def enter(self, number: int, network: str, now_s: float) -> Slot:
        slot = self.come(number, network, now_s)
        assert self.slots.enter(slot, now_s)
        return slot


def test_a_stream_on_which_nothing_is_asked_gives_way_and_only_if_another_waits() -> None:
    places = Places(2)
    idle, busy = places.enter(1, "a", 0.0), places.enter(2, "b", 0.0)
    idle.answered(0.5)
    take(busy, 1 << 20, 1.0)
    other = places.come(3, "c", 1.0)
    assert not places.slots.enter(other, 0.4 + IDLE_S)
    assert places.ended == []
    assert places.slots.enter(other, 0.6 + IDLE_S)
    assert places.ended == [idle] and places.slots.num_held == 2


def test_small_questions_now_and_then_do_not_keep_a_place() -> None:
    places = Places(1)
    dripping = places.enter(1, "a", 0.0)
    now_s = 0.0
    while now_s < JUDGED_S:
        now_s += 0.9 * IDLE_S
        dripping.asked(now_s)
        take(dripping, 40, now_s)
        dripping.answered(now_s)
    other = places.come(2, "a", now_s)
    assert places.slots.enter(other, now_s + 0.1) and places.ended == [dripping]


def test_a_stream_that_takes_bytes_keeps_its_place_until_its_time_is_over() -> None:
    places = Places(1)
    busy = places.enter(1, "a", 0.0)
    waiting = places.come(2, "a", 0.0)
    for second in range(int(TURN_S)):
        take(busy, 2 * SLOW_BYTES_S, float(second))
        assert not places.slots.enter(waiting, float(second))
    assert places.slots.enter(waiting, TURN_S + 0.1), "two peers of one network take turns"


def test_networks_count_before_peers() -> None:
    """One network with many PeerIDs does not keep another out: it is served before the sixth of the first."""
    places = Places(6)
    crowd = [places.enter(number, "a", 0.0) for number in range(6)]
    many = [places.come(10 + number, "a", 0.0) for number in range(6)]
    alone = places.come(99, "b", 1.0)
    for slot in crowd:
        take(slot, 100 << 20, TURN_S)
    now_s = TURN_S + 1
    assert not any(places.slots.enter(slot, now_s) for slot in many), "a stream from another network comes first"
    assert places.slots.enter(alone, now_s)
    assert len(places.ended) == 1 and places.ended[0] in crowd


def test_a_peer_may_hold_or_wait_for_two_and_few_may_wait() -> None:
    places = Places(1)
    for _ in range(MAX_UPLOADS_PER_PEER):
        places.come(1, "a", 0.0)
    with pytest.raises(OverloadedError, match="limit of one peer"):
        places.come(1, "b", 0.0)
    for number in range(2, 2 + MAX_WAITING - MAX_UPLOADS_PER_PEER):
        places.come(number, "a", 0.0)
    with pytest.raises(OverloadedError, match="others wait"):
        places.come(500, "a", 0.0)


def test_a_stream_that_leaves_frees_its_place() -> None:
    places = Places(1)
    first, second = places.enter(1, "a", 0.0), places.come(2, "a", 0.0)
    assert not places.slots.enter(second, 0.1)
    places.slots.leave(first)
    assert places.slots.enter(second, 0.2) and not places.ended


def test_a_peer_that_did_not_use_its_place_comes_after_the_others_for_a_while() -> None:
    places = Places(1)
    lazy = places.enter(1, "a", 0.0)
    lazy.answered(0.0)
    places.enter(2, "a", 2 * IDLE_S)
    assert places.ended == [lazy]
    places.slots.leave(lazy)
    now_s = 3 * IDLE_S
    back, new = places.come(1, "a", now_s), places.come(3, "a", now_s + 1)
    later_s = now_s + JUDGED_S + 1
    assert not places.slots.enter(back, later_s)
    assert places.slots.enter(new, later_s)
    assert places.slots.enter(back, now_s + SHUNNED_S + TURN_S), "no peer is shut out for ever"


def test_a_fast_stream_that_takes_nothing_more_gives_way_soon_a_slow_one_has_time_for_its_piece() -> None:
    places = Places(2)
    fast, slow = places.enter(1, "a", 0.0), places.enter(2, "a", 0.0)
    take(fast, 10 << 20, 0.5)
    take(slow, 1 << 20, 0.5)
    other = places.come(3, "a", 0.5)
    assert not places.slots.enter(other, SHORTEST_PAUSE_S)
    assert places.slots.enter(other, 0.6 + SHORTEST_PAUSE_S) and places.ended == [fast]
    other.offered(1 << 20)
    third = places.come(4, "a", 6.0)
    assert not places.slots.enter(third, 16.5), "a piece at 64 KiB/s takes 16 s"
