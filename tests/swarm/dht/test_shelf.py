"""Entries kept for others: the newest wins, a flood replaces itself."""

from __future__ import annotations

import random

from protocols.entries import SignedEntry
from protocols.identity import from_seed
from protocols.ids import PeerId, peer_id_of
from swarm.dht import shelf as module
from swarm.dht.shelf import MAX_ENTRIES, MAX_PER_KEY, MAX_PER_PREFIX, MAX_PER_PREFIX_AND_KEY, OURS, Shelf
from swarm.prefixes import prefix

KEY, OTHER = b"k" * 20, b"o" * 20
LOCAL, HERE, THERE = prefix("127.0.0.1"), prefix("8.8.8.8"), prefix("9.9.9.9")
ALICE = from_seed(b"a" * 32).peer_id
SEED = 12


def peer(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32))


def entry(expires_s: float = 1_060.0, value: bytes = b"x") -> SignedEntry:
    return SignedEntry(value, expires_s)


class World:
    """A shelf, its clock, and whom its owner has met."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self.now_s, self.met = 1_000.0, set[PeerId]()
        self.shelf = Shelf(random.Random(SEED), lambda: self.now_s, lambda one: one in self.met, max_entries)

    def flood(self, count: int, origin: str = LOCAL, key: bytes = KEY, start: int = 0) -> None:
        for number in range(start, start + count):
            assert self.shelf.put(key, peer(number), entry(), origin), "what is new is never refused"


def test_a_replayed_older_entry_neither_wins_nor_shortens_the_newer_ones_life() -> None:
    world = World()
    assert world.shelf.put(KEY, ALICE, entry(1_060.0, b"new"), LOCAL)
    assert not world.shelf.put(KEY, ALICE, entry(1_010.0, b"old"), LOCAL)
    assert not world.shelf.put(KEY, ALICE, entry(1_060.0, b"same"), LOCAL)
    world.now_s = 1_030.0  # the old one's time is over
    world.flood(1)
    assert world.shelf.entries(KEY)[ALICE].value == b"new"
    assert world.shelf.put(KEY, ALICE, entry(1_060.5, b"newer"), HERE)
    assert world.shelf.entries(KEY)[ALICE].value == b"newer"


def test_what_has_expired_is_neither_kept_nor_told() -> None:
    world = World()
    assert not world.shelf.put(KEY, ALICE, entry(999.0), LOCAL)
    assert world.shelf.put(KEY, ALICE, entry(1_001.0), LOCAL)
    world.now_s = 1_002.5
    assert world.shelf.entries(KEY) == {}
    world.flood(1, key=OTHER)
    assert len(world.shelf) == 1 and not world.shelf.holds(KEY, ALICE)


def test_what_was_kept_while_our_clock_was_ahead_holds_up_nothing_once_it_is_right() -> None:
    """Also our own entry, which no other member has taken."""
    for origin in (OURS, LOCAL):
        world = World()
        world.now_s += 3_600.0
        assert world.shelf.put(KEY, ALICE, entry(4_660.0, b"ahead"), origin)
        world.now_s -= 3_600.0
        assert world.shelf.entries(KEY) == {}
        assert world.shelf.put(KEY, ALICE, entry(1_060.0, b"right"), origin)
        assert world.shelf.entries(KEY)[ALICE].value == b"right" and len(world.shelf) == 1


def test_a_full_key_takes_what_is_new_and_keeps_its_bound() -> None:
    world = World()
    world.flood(3 * MAX_PER_KEY)
    assert len(world.shelf.entries(KEY)) == MAX_PER_KEY
    assert world.shelf.put(KEY, ALICE, entry(), LOCAL) and ALICE in world.shelf.entries(KEY)


def test_a_network_that_floods_pushes_out_itself() -> None:
    """And an honest entry of another network stays, however long the flood."""
    world = World()
    assert world.shelf.put(KEY, ALICE, entry(), THERE)
    world.flood(5_000, HERE)
    assert len(world.shelf.entries(KEY)) == MAX_PER_PREFIX_AND_KEY + 1
    world.flood(5_000, LOCAL, start=10_000)
    assert len(world.shelf.entries(KEY)) == MAX_PER_KEY and ALICE in world.shelf.entries(KEY)


def test_a_network_has_a_bound_over_all_keys() -> None:
    world = World()
    for number in range(60):
        world.flood(MAX_PER_PREFIX_AND_KEY, HERE, key=number.to_bytes(20), start=100 * number)
    assert len(world.shelf) == MAX_PER_PREFIX


def test_among_equals_those_that_have_answered_stay() -> None:
    """A whole swarm on one network, and the flood, too: there the prefix tells nothing."""
    world = World()
    honest = [peer(number) for number in range(100_000, 100_020)]
    for one in honest:
        assert world.shelf.put(KEY, one, entry(), LOCAL)
    world.met = set(honest)
    world.flood(8_000)
    assert set(honest) <= set(world.shelf.entries(KEY))


def test_our_own_entry_stays_whatever_comes() -> None:
    world = World()
    assert world.shelf.put(KEY, ALICE, entry(), OURS)
    world.flood(8_000)
    assert ALICE in world.shelf.entries(KEY)


def test_the_whole_shelf_is_bounded_and_the_largest_network_gives_way() -> None:
    world = World(max_entries=500)
    for number in range(module.MAX_PER_AUTHOR):
        assert world.shelf.put(number.to_bytes(20), ALICE, entry(), THERE)
    for number in range(1_000):
        world.flood(1, LOCAL, key=(100 + number).to_bytes(20), start=number)
    assert len(world.shelf) == 500
    assert all(world.shelf.holds(number.to_bytes(20), ALICE) for number in range(module.MAX_PER_AUTHOR))


def test_an_author_has_a_bounded_number_of_entries_until_they_expire() -> None:
    world = World()
    taken = [world.shelf.put(number.to_bytes(20), ALICE, entry(), LOCAL) for number in range(30)]
    assert taken == [True] * module.MAX_PER_AUTHOR + [False] * (30 - module.MAX_PER_AUTHOR)
    assert world.shelf.put((0).to_bytes(20), ALICE, entry(1_070.0), LOCAL)  # what is there may be renewed
    world.now_s = 1_065.0
    assert world.shelf.put(OTHER, ALICE, entry(1_080.0), LOCAL)


def test_the_books_are_kept_right_whatever_happens() -> None:
    rng, world = random.Random(SEED), World()
    for _ in range(20_000):
        world.now_s += 0.002
        origin = rng.choice([LOCAL, HERE, THERE, OURS])
        key, author = bytes([rng.randrange(3)]) * 20, peer(rng.randrange(2_000))
        world.shelf.put(key, author, entry(world.now_s + rng.random() * 20), origin)
    held = [(key, author, kept.origin) for key, said in world.shelf._keys.items() for author, kept in said.items()]
    others = {(key, author) for key, author, origin in held if origin != OURS}
    assert set(world.shelf._all._places) == others == {place for bag in world.shelf._of_key.values() for place in bag._places}
    assert others == {place for bag in world.shelf._of_both.values() for place in bag._places}
    assert others == {place for bag in world.shelf._of_origin.values() for place in bag._places}
    assert sum(world.shelf._of_author.values()) == len(held) == len(world.shelf)
