"""Which peers are asked for the directory, in which order.

Those that have answered before, and among every three a new one.

New sources are named by other peers, so most of them may be made up: they never replace, nor delay, those that have answered.
One that answered before and fails now is asked again after all others: it may be our own network that is down.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm import recent
from swarm.prefixes import UNKNOWN, prefix

MAX_UNTRIED = 64
"""Newcomers that are remembered; a further one takes the place of a random one."""

MAX_ANSWERED = 64
"""Peers that have answered, the given ones not counted."""

FANOUT = 3
"""Peers asked at once; if they all fail, twice as many, and so on."""

MAX_LOST = 16
"""Peers that answered once and failed since, the last ones, and only a part of them of one network."""

AVOID_LOOKS = 5
"""Looks for which a newcomer that did not answer is not asked again, unless it has moved."""

MAX_MOVED = 4
"""Addresses that a given peer announces, which are tried before those that were given."""

NEW_EVERY = 3
"""Every third that is asked is a newcomer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A peer to ask."""

    peer: PeerId
    addresses: tuple[str, ...]
    certificate: bytes = b""
    is_given: bool = False
    """Named by our user: asked again even after it failed."""


class Sources:
    """`rng` draws among newcomers."""

    def __init__(self, given: Sequence[Source], rng: random.Random) -> None:
        self._rng = rng
        self._given = {source.peer: source for source in given}
        self._proven = dict(self._given)
        """Given, or has answered; who is asked first stands first."""
        self._untried: dict[PeerId, Source] = {}
        self._lost: dict[PeerId, Source] = {}
        """Answered once, and failed since; the last one stands last."""
        self._networks: dict[PeerId, str] = {}
        """Of those that have answered: where they did so last."""
        self._dead: dict[tuple[PeerId, tuple[str, ...]], int] = {}
        """Looks for which one that did not answer at these addresses is left alone there."""

    def __iter__(self) -> Iterator[Source]:
        """In the order in which they would be asked now."""
        proven, untried = iter(self._proven.values()), list(self._untried.values())
        self._rng.shuffle(untried)
        fresh = iter(untried)
        while True:
            turn = [*itertools.islice(proven, NEW_EVERY - 1), *itertools.islice(fresh, 1)]
            if not turn:
                break
            yield from turn
        yield from reversed([one for peer, one in self._lost.items() if peer not in self._untried])

    def rounds(self) -> Iterator[list[Source]]:
        """Sources to ask at once; the next round only if none of the one before has answered."""
        waiting, size = iter(list(self)), FANOUT
        while asked := list(itertools.islice(waiting, size)):
            yield asked
            size *= 2

    def answered(self, source: Source, address: str = "") -> None:
        """At `address` (`host:port`). It comes last the next time, so that others are asked, too."""
        self._forget(source.peer)
        self._proven[source.peer] = source
        self._networks[source.peer] = prefix(address.rpartition(":")[0].strip("[]"))
        surplus = [peer for peer, one in self._proven.items() if not one.is_given][:-MAX_ANSWERED]
        for peer in surplus:
            del self._proven[peer]
            self._networks.pop(peer, None)

    def failed(self, source: Source) -> None:
        """Ask it last if it was given or has answered before; else forget it."""
        has_answered = source.peer in self._proven or source.peer in self._lost
        self._forget(source.peer)
        if source.is_given:
            self._proven[source.peer] = source
            return
        self._dead[source.peer, source.addresses] = AVOID_LOOKS
        if has_answered:
            recent.note(self._lost, source.peer, source, MAX_LOST, lambda peer: self._networks.get(peer, UNKNOWN))
        self._networks = {peer: one for peer, one in self._networks.items() if peer in self._proven or peer in self._lost}

    def _forget(self, peer: PeerId) -> None:
        for book in (self._untried, self._proven, self._lost):
            book.pop(peer, None)

    def learn(self, records: Sequence[PeerRecord]) -> None:
        """Note peers that we have not heard of, and what is new about the others."""
        for record in self._rng.sample(records, len(records)):
            if (record.peer, record.addresses) in self._dead:
                continue
            source = Source(peer=record.peer, addresses=record.addresses, certificate=record.certificate)
            known = self._proven.get(record.peer)
            if known is not None:
                self._proven[record.peer] = self._moved(source) if known.is_given else source
            elif record.addresses:
                if record.peer not in self._untried and len(self._untried) >= MAX_UNTRIED:
                    del self._untried[self._rng.choice(list(self._untried))]
                self._untried[record.peer] = source
        self._dead = {place: looks - 1 for place, looks in self._dead.items() if looks > 1}

    def _moved(self, source: Source) -> Source:
        """A given peer, where it says that it is now, and where our user said."""
        given = self._given[source.peer]
        addresses = tuple(dict.fromkeys((*source.addresses[:MAX_MOVED], *given.addresses)))
        return Source(peer=source.peer, addresses=addresses, certificate=source.certificate or given.certificate, is_given=True)
