"""Entries that this peer stores for others, within bounds.

In all, by key, by author and by the network that they came from.

A full shelf never refuses what is new: a random entry gives way, more likely one of a network that has many. So a flood from few
networks pushes out itself, and who announces again every 20 s is there again soon whatever the flood. Our own entries stay.

No signature is looked at here (`protocol.py` does that before), no clock is read and no randomness made: both are passed in.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from protocols.entries import MAX_LIFE_S, SignedEntry
from protocols.ids import PeerId
from swarm.prefixes import is_local

MAX_ENTRIES = 20_000
"""Entries on the shelf: 30 MB of records of 1.5 KB."""

MAX_PER_KEY = 1_000
"""Entries of one key; an answer holds fewer, drawn anew each time."""

MAX_PER_AUTHOR = 9
"""Entries of one author: 4 models that it hosts, 4 that it is announced under besides, and one list of names."""

MAX_PER_PREFIX = 2_000
MAX_PER_PREFIX_AND_KEY = 64
"""Entries that came from one /24 or /48; on loopback and in private networks only the bounds on all of them hold."""

SWEEP_S = 1.0
"""Seconds between two looks for what has expired."""

_DRAWN = 16
"""Entries among which the one to give way is chosen."""

OURS = "ours"
"""Where our own entries came from."""

Place = tuple[bytes, PeerId]
"""A key and an author."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry, and the network that it came from (`prefixes.prefix`)."""

    entry: SignedEntry
    origin: str


class _Bag:
    """Places, one of which can be drawn at once."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._at: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: Place) -> None:
        self._at[place] = len(self._places)
        self._places.append(place)

    def remove(self, place: Place) -> None:
        at, last = self._at.pop(place), self._places.pop()
        if last != place:
            self._places[at], self._at[last] = last, at

    def draw(self, rng: random.Random, count: int) -> list[Place]:
        return rng.choices(self._places, k=count)


class Shelf:
    """By key and author. clock: Unix time. has_met: peers that have answered us, whose entries give way last."""

    def __init__(
        self,
        rng: random.Random,
        clock: Callable[[], float],
        has_met: Callable[[PeerId], bool],
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._rng, self._clock, self._has_met, self._most = rng, clock, has_met, max_entries
        self._keys: dict[bytes, dict[PeerId, Kept]] = {}
        self._all = _Bag()
        self._of_key: defaultdict[bytes, _Bag] = defaultdict(_Bag)
        self._of_origin: defaultdict[str, _Bag] = defaultdict(_Bag)
        self._of_both: defaultdict[tuple[bytes, str], _Bag] = defaultdict(_Bag)
        """These four hold what may give way, so nothing of ours."""
        self._of_author: Counter[PeerId] = Counter()
        self._swept_s = clock()

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def entries(self, key: bytes) -> dict[PeerId, SignedEntry]:
        """What is kept under a key and has not expired."""
        now_s = self._clock()
        return {peer: kept.entry for peer, kept in self._keys.get(key, {}).items() if _holds(kept.entry, now_s)}

    def holds(self, key: bytes, author: PeerId) -> bool:
        """Is anything of this author's kept under the key?"""
        return author in self._keys.get(key, {})

    def would_take(self, key: bytes, author: PeerId, expires_s: float) -> bool:
        """Is it later than what is held, and within its author's share? Cheap, so asked before a signature is checked."""
        self._sweep()
        held, now_s = self._keys.get(key, {}).get(author), self._clock()
        if held is not None and _holds(held.entry, now_s):
            return expires_s > held.entry.expires_s
        return expires_s > now_s and (held is not None or self._of_author[author] < MAX_PER_AUTHOR)

    def put(self, key: bytes, author: PeerId, entry: SignedEntry, origin: str) -> bool:
        """Keep a checked entry; False if `would_take` says no."""
        if not self.would_take(key, author, entry.expires_s):
            return False
        if self.holds(key, author):
            self._remove((key, author))
        if origin != OURS:
            self._make_room(key, origin)
        self._keys.setdefault(key, {})[author] = Kept(entry, origin)
        self._of_author[author] += 1
        for bag in self._bags(key, origin) if origin != OURS else ():
            bag.add((key, author))
        return True

    # --- who gives way

    def _make_room(self, key: bytes, origin: str) -> None:
        beside, of_key, of_origin, everything = self._bags(key, origin)
        if not is_local(origin):
            self._shrink(beside, MAX_PER_PREFIX_AND_KEY, lambda place: 0)
            self._shrink(of_origin, MAX_PER_PREFIX, lambda place: 0)
        self._shrink(of_key, MAX_PER_KEY, lambda place: len(self._of_both[place[0], self._origin(place)]))
        self._shrink(everything, self._most, lambda place: len(self._of_origin[self._origin(place)]))

    def _shrink(self, bag: _Bag, limit: int, num_beside: Callable[[Place], int]) -> None:
        """Free the place of one entry: of a few that are drawn at random, an author goes that we have not met, of the largest network."""
        if len(bag) >= limit:
            drawn = bag.draw(self._rng, _DRAWN)
            self._remove(max(drawn, key=lambda place: (not self._has_met(place[1]), num_beside(place))))

    def _origin(self, place: Place) -> str:
        key, author = place
        return self._keys[key][author].origin

    def _bags(self, key: bytes, origin: str) -> tuple[_Bag, ...]:
        return self._of_both[key, origin], self._of_key[key], self._of_origin[origin], self._all

    def _remove(self, place: Place) -> None:
        key, author = place
        origin = self._keys[key].pop(author).origin
        if not self._keys[key]:
            del self._keys[key]
        self._of_author[author] -= 1
        if not self._of_author[author]:
            del self._of_author[author]
        if origin == OURS:
            return
        for bag in self._bags(key, origin):
            bag.remove(place)
        if not self._of_both[key, origin]:
            del self._of_both[key, origin]
        if not self._of_key[key]:
            del self._of_key[key]
        if not self._of_origin[origin]:
            del self._of_origin[origin]

    def _sweep(self) -> None:
        """Forget what has expired, every SWEEP_S at most: a walk over everything, 5 ms."""
        now_s = self._clock()
        if abs(now_s - self._swept_s) < SWEEP_S:
            return
        self._swept_s = now_s
        for key, held in list(self._keys.items()):
            for author in [author for author, kept in held.items() if not _holds(kept.entry, now_s)]:
                self._remove((key, author))


def _holds(entry: SignedEntry, now_s: float) -> bool:
    """It has not expired. If it lasts longer than any entry may, our clock was set back meanwhile, and no peer would take it."""
    return now_s < entry.expires_s <= now_s + MAX_LIFE_S
