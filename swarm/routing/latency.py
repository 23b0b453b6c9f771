"""Round trips to other peers, measured with `hello` and remembered for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from protocols.errors import DeadlineError, SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord

Ping = Callable[[PeerRecord], Awaitable[None]]
"""Says hello to a peer and returns when it has answered; SwarmError where it does not."""

FRESH_S = 60.0
FORGET_S = 900.0
"""A peer that was not measured for this long is no longer remembered."""

PING_S = 2.0
MAX_PINGS = 64
"""Peers measured at once."""


class Latency:
    """Our own round trips, and what peers say of theirs."""

    def __init__(self, ping: Ping) -> None:
        self._ping = ping
        self._measured: dict[PeerId, tuple[float, float]] = {}

    async def measure(self, records: Iterable[PeerRecord]) -> dict[PeerId, SwarmError]:
        """Measure whoever was not measured lately, all at once; returns those that did not answer, with the reason."""
        now_s = time.monotonic()
        due = [record for record in records if now_s - self._measured.get(record.peer, (0.0, -FRESH_S))[1] >= FRESH_S][:MAX_PINGS]
        outcomes = await asyncio.gather(*(self.probe(record) for record in due))
        return {record.peer: error for record, error in zip(due, outcomes, strict=True) if error is not None}

    async def probe(self, record: PeerRecord) -> SwarmError | None:
        """One round trip now; the reason where there is no answer within PING_S."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(PING_S):
                await self._ping(record)
        except TimeoutError:
            self.forget(record.peer)
            return DeadlineError(f"no answer to hello within {PING_S:.0f} s")
        except SwarmError as error:
            self.forget(record.peer)
            return error
        now_s = time.monotonic()
        self._measured = {peer: entry for peer, entry in self._measured.items() if now_s - entry[1] < FORGET_S}
        self._measured[record.peer] = ((time.perf_counter() - started) * 1e3, now_s)
        return None

    def forget(self, peer: PeerId) -> None:
        """The peer failed: its round trip is measured anew before it is used again."""
        self._measured.pop(peer, None)

    def round_trip_ms(self, peer: PeerId) -> float:
        """Milliseconds to `peer` and back; the longest known way where it was never measured: unknown is not near."""
        entry = self._measured.get(peer)
        return entry[0] if entry is not None else max((ms for ms, _ in self._measured.values()), default=0.0)

    def between_ms(self, a: PeerRecord | None, b: PeerRecord | None) -> float:
        """One-way milliseconds; None is this peer. Between two others: what they announce, else the longer of our own ways."""
        if a is None or b is None:
            other = a or b
            return 0.0 if other is None else self.round_trip_ms(other.peer) / 2
        announced = dict(a.round_trips).get(b.peer) or dict(b.round_trips).get(a.peer)
        return (announced or max(self.round_trip_ms(a.peer), self.round_trip_ms(b.peer))) / 2
