"""Who answers: hellos to many peers, again and again.

The machine of a process that was killed refuses connections at once, so that peer counts as silent after one hello. A peer that answers
late counts as silent after LATE hellos, one after the other, that took too long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.asking import AT_ONCE, HELLO_S, Ping
from swarm.tasks import Tasks

LATE = 2
"""Hellos, one after the other, that may take too long before a peer counts as silent."""


class Pulse:
    """Round trips and silences. All methods belong to one event loop."""

    def __init__(self, ping: Ping, hello_s: float = HELLO_S, at_once: int = AT_ONCE) -> None:
        self._ping, self._hello_s, self._at_once = ping, hello_s, at_once
        self.trips_ms: dict[PeerId, float] = {}
        """Round trip of each peer that has answered, as its last answer measured it."""
        self._late: dict[PeerId, int] = {}
        self._asking = Tasks()
        self._asked: set[PeerId] = set()
        self._queue: deque[PeerId] = deque()

    @property
    def silent(self) -> set[PeerId]:
        """Peers that do not answer."""
        return {peer for peer, times in self._late.items() if times >= LATE}

    def begin(self, records: Iterable[PeerRecord]) -> None:
        """Ask the peers that were asked longest ago, each by one hello at a time. Peers that are not among `records` are forgotten."""
        known = {record.peer: record for record in records}
        for forgotten in (self.trips_ms.keys() | self._late.keys()) - known.keys():
            self.trips_ms.pop(forgotten, None)
            self._late.pop(forgotten, None)
        self._queue.extend(sorted(known.keys() - set(self._queue)))
        for _ in range(len(self._queue)):
            if len(self._asking) >= self._at_once:
                break
            peer = self._queue.popleft()
            if peer not in known:
                continue
            self._queue.append(peer)
            if peer not in self._asked:
                self._asked.add(peer)
                self._asking.keep(self._ask(known[peer]))

    async def _ask(self, record: PeerRecord) -> None:
        peer = record.peer
        try:
            async with asyncio.timeout(self._hello_s):
                self.trips_ms[peer] = await self._ping(record)
            self._late.pop(peer, None)
        except TimeoutError:
            self._late[peer] = self._late.get(peer, 0) + 1
        except SwarmError:
            self._late[peer] = LATE
        finally:
            self._asked.discard(peer)

    async def settled(self, within_s: float) -> None:
        """Wait until all hellos have ended, for a short time at most."""
        await self._asking.wait(within_s)

    async def close(self) -> None:
        """Ask no more."""
        await self._asking.stop()
