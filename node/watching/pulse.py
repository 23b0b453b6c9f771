"""Who answers: hellos to many peers, again and again.

A process that was killed refuses connections at once, so its peer is silent within one turn. One that only is late counts as silent after
two hellos, one after the other, that took too long.
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
        """Of those that have answered, by their last answer."""
        self._late: dict[PeerId, int] = {}
        self._asking = Tasks()
        self._asked: set[PeerId] = set()
        self._turns: deque[PeerId] = deque()

    @property
    def silent(self) -> set[PeerId]:
        """Those that did not answer."""
        return {peer for peer, times in self._late.items() if times >= LATE}

    def begin(self, records: Iterable[PeerRecord]) -> None:
        """Ask those that were asked longest ago, and none twice at once. Peers that are not among `records` are forgotten."""
        known = {record.peer: record for record in records}
        for forgotten in (self.trips_ms.keys() | self._late.keys()) - known.keys():
            self.trips_ms.pop(forgotten, None)
            self._late.pop(forgotten, None)
        self._turns.extend(sorted(known.keys() - set(self._turns)))
        for _ in range(len(self._turns)):
            if len(self._asking) >= self._at_once:
                break
            peer = self._turns.popleft()
            if peer not in known:
                continue
            self._turns.append(peer)
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
