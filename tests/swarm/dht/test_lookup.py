"""A lookup finds the nearest members, whatever some of them do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from protocols.entries import SignedEntry
from protocols.ids import peer_id_of
from swarm.dht.lookup import BEAM, MAX_ASKED, PARALLEL, Answer, Lookup

SEED = 12
KEY = 1 << 159
ENTRY = (peer_id_of(bytes(32)), SignedEntry(b"said", 1.0))


@dataclass
class LocalSwarm:
    """Members by node id, each knowing some others; a peer's name is its node id as text."""

    members: dict[int, list[int]]
    holders: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    asked: list[int] = field(default_factory=list)

    async def ask(self, peer: str, keys: Sequence[int]) -> Answer | None:
        node = int(peer)
        self.asked.append(node)
        if node in self.hanging:
            await asyncio.Event().wait()
        if node in self.silent or node not in self.members:
            return None
        nearest = {one: str(one) for key in keys for one in sorted(self.members[node], key=lambda other: other ^ key)[:BEAM]}
        return Answer(nearest=nearest, told={key: [ENTRY] for key in keys if node in self.holders})


def local_swarm(count: int, **changes: frozenset[int]) -> LocalSwarm:
    rng = random.Random(SEED)
    nodes = [rng.getrandbits(160) for _ in range(count)]
    known = {
        node: list({*sorted(nodes, key=lambda other: other ^ node)[1:21], *rng.sample(nodes, min(20, count))}) for node in nodes
    }
    return LocalSwarm(known, **changes)


def nearest(found: LocalSwarm, count: int, key: int = KEY) -> list[int]:
    return sorted(found.members, key=lambda node: node ^ key)[:count]


async def look(found: LocalSwarm, *keys: int, timeout_s: float = 5.0) -> Lookup:
    start = next(iter(found.members))
    lookup = Lookup(keys or (KEY,), [(start, str(start))], found.ask, "me")
    await lookup.run(timeout_s)
    return lookup


async def test_the_nearest_of_a_large_swarm_are_found_from_any_member() -> None:
    found = local_swarm(500)
    assert (await look(found)).nearest(KEY, 5) == [str(node) for node in nearest(found, 5)]
    assert len(found.asked) == len(set(found.asked)) < MAX_ASKED


async def test_one_question_to_a_member_serves_all_keys() -> None:
    found = local_swarm(12)
    keys = [random.Random(SEED + number).getrandbits(160) for number in range(8)]
    lookup = await look(found, *keys)
    assert sorted(found.asked) == sorted(found.members)
    assert all(lookup.nearest(key, 3) == [str(node) for node in nearest(found, 3, key)] for key in keys)


async def test_in_a_large_swarm_the_members_nearest_each_of_8_keys_are_asked() -> None:
    found = local_swarm(500)
    keys = [random.Random(SEED + number).getrandbits(160) for number in range(8)]
    found.holders = frozenset(node for key in keys for node in nearest(found, 5, key))
    lookup = await look(found, *keys)
    assert all(lookup.told[key] for key in keys)
    assert all(set(nearest(found, 5, key)) <= set(found.asked) for key in keys)
    assert len(found.asked) <= MAX_ASKED + 7 * BEAM


async def test_silent_members_make_room_for_the_next_nearest() -> None:
    found = local_swarm(300)
    found.silent = frozenset(nearest(found, 15))
    found.holders = frozenset(nearest(found, 30)[20:])
    lookup = await look(found)
    assert set(lookup.nearest(KEY, 5)).isdisjoint(str(node) for node in found.silent)
    assert lookup.told[KEY] == [[ENTRY]] * len(lookup.told[KEY]) != []


async def test_what_was_told_before_the_time_was_over_counts() -> None:
    found = local_swarm(30)
    found.holders = frozenset(found.members)
    found.hanging = frozenset(nearest(found, 4))
    lookup = await look(found, timeout_s=0.3)
    assert len(lookup.told[KEY]) >= BEAM - 4
    assert lookup.nearest(KEY, 1) != [str(nearest(found, 1)[0])], "who has answered goes first"


async def test_members_that_hang_hold_up_neither_the_others_nor_the_end() -> None:
    """As many as there are places, and nearest of all: the time that there would be is not used."""
    found = local_swarm(60)
    found.hanging = frozenset(nearest(found, 2 * PARALLEL)) - {next(iter(found.members))}
    found.holders = frozenset(found.members)
    async with asyncio.timeout(60):
        lookup = await look(found, timeout_s=3_600.0)
    assert len(lookup.told[KEY]) > 2 * (BEAM - len(found.hanging)), "the next nearest took their places"


async def test_a_member_that_names_ever_nearer_ones_is_not_followed_for_ever() -> None:
    class Liar(LocalSwarm):
        async def ask(self, peer: str, keys: Sequence[int]) -> Answer | None:
            self.asked.append(int(peer))
            depth = max(1, (int(peer) ^ KEY).bit_length() - 1)
            nearer = [KEY ^ random.getrandbits(depth) for _ in range(200)]
            return Answer(nearest={node: str(node) for node in nearer})

    liar = Liar({0: []})
    await look(liar)
    assert len(liar.asked) <= MAX_ASKED


@pytest.mark.parametrize("first", ["truth", "lie"])
async def test_nobody_takes_a_members_place_by_naming_another_for_it(first: str) -> None:
    found = local_swarm(3)
    honest = nearest(found, 1)[0]
    known = [(honest, str(honest)), (honest, "1")]
    lookup = Lookup((KEY,), known if first == "truth" else known[::-1], found.ask, "me")
    await lookup.run(5.0)
    assert lookup.nearest(KEY, 1) == [str(honest)]


async def test_members_that_we_joined_by_are_asked_however_far_they_are() -> None:
    """All that are nearest belong to an attacker, which says nothing of what it was given."""
    found = local_swarm(300)
    friend = sorted(found.members, key=lambda node: node ^ KEY)[-1]
    found.holders = frozenset([friend])
    start = next(iter(found.members))
    assert (await look(found)).told[KEY] == []
    lookup = Lookup((KEY,), [(start, str(start))], found.ask, "me", [(friend, str(friend))])
    await lookup.run(5.0)
    assert lookup.told[KEY] == [[ENTRY]]
