"""Neighbours that were heard on the local network, bounded.

A few are asked at a time, those first that were not asked yet.

Any machine on the network can announce any number of addresses. So a further one takes the place of a random one, of the same host if that
has many, and a round of questions has a bound.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Container

from swarm.dht.address import PeerAddress

MAX_HEARD = 256
MAX_PER_HOST = 16
"""Addresses of one host: one machine may run several nodes."""

MAX_ASKED = 64
"""Neighbours asked at once."""


class Neighbours:
    """`rng` chooses who gives way, and who is asked first."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._heard: dict[PeerAddress, bool] = {}
        """Each with whether it was asked already."""
        self.news = asyncio.Event()
        """Set when a new neighbour was heard."""

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, address: PeerAddress) -> None:
        """A neighbour speaks. Call it on the loop."""
        if address in self._heard:
            return
        beside = [one for one in self._heard if one.host == address.host]
        if len(beside) >= MAX_PER_HOST:
            del self._heard[self._rng.choice(beside)]
        elif len(self._heard) >= MAX_HEARD:
            del self._heard[self._rng.choice(list(self._heard))]
        self._heard[address] = False
        self.news.set()

    def to_ask(self, ignored: Container[PeerAddress], *, only_new: bool = False) -> list[PeerAddress]:
        """Neighbours to ask now: MAX_ASKED at most, those not asked before first, else in random order; they are noted as asked."""
        chosen = [one for one, was_asked in self._heard.items() if one not in ignored and not (only_new and was_asked)]
        self._rng.shuffle(chosen)
        chosen.sort(key=lambda one: self._heard[one])
        del chosen[MAX_ASKED:]
        self._heard.update(dict.fromkeys(chosen, True))
        return chosen
