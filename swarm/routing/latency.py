"""Round trips to other peers, measured with `hello`.

They are remembered for a while. A peer that has not answered has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from protocols.errors import DeadlineError, SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm import awake
from swarm.asking import AT_ONCE, HELLO_S, Ping, answers
from swarm.clock import SYSTEM, Clock

FRESH_S = 60.0
"""Seconds for which an answer counts: after that a peer has to answer again before it is used."""

FORGET_S = 900.0
"""A peer that was not measured for this long is no longer remembered."""

PING_S = HELLO_S


class Latency:
    """Our own round trips, and what peers say of theirs."""

    def __init__(self, ping: Ping, on_silent: Callable[[PeerRecord, SwarmError], None], clock: Clock = SYSTEM) -> None:
        """on_silent: told of each peer that `measure` began to ask and that does not answer, also after the caller has left."""
        self._ping, self._on_silent, self._now_s = ping, on_silent, clock.now_s
        self._measured: dict[PeerId, tuple[float, float]] = {}
        self._asking: dict[PeerId, asyncio.Task[SwarmError | None]] = {}

    def has_answered(self, peer: PeerId) -> bool:
        """Has it answered lately? Only such peers are used."""
        entry = self._measured.get(peer)
        return entry is not None and self._now_s() - entry[1] < FRESH_S

    def is_remembered(self, peer: PeerId) -> bool:
        """Has it answered at all, as far as we remember?"""
        return peer in self._measured

    def measure(self, records: Iterable[PeerRecord]) -> AsyncGenerator[tuple[PeerRecord, SwarmError | None], None]:
        """Ask in this order, AT_ONCE at a time, those that have not answered lately; each with the reason if it does not answer.

        Questions that are under way when the caller leaves go on for up to PING_S: a late answer counts for the next route.
        """
        return answers((one for one in records if not self.has_answered(one.peer)), self._asked, AT_ONCE)

    def look_around(self, records: Iterable[PeerRecord], number: int) -> None:
        """Ask up to `number` of those that have not answered lately; no caller waits for it."""
        for record in records:
            if len(self._asking) >= number:
                return
            if not self.has_answered(record.peer) and record.peer not in self._asking:
                self._start(record)

    async def _asked(self, record: PeerRecord) -> SwarmError | None:
        return await asyncio.shield(self._asking.get(record.peer) or self._start(record))

    def _start(self, record: PeerRecord) -> asyncio.Task[SwarmError | None]:
        task = asyncio.create_task(self._probe_and_tell(record), name="hello")
        self._asking[record.peer] = task
        task.add_done_callback(lambda _: self._asking.pop(record.peer, None))
        return task

    async def _probe_and_tell(self, record: PeerRecord) -> SwarmError | None:
        error = await self.probe(record)
        if error is not None:
            self._on_silent(record, error)
        return error

    async def probe(self, record: PeerRecord) -> SwarmError | None:
        """One round trip now; the reason where there is no answer within PING_S."""
        try:
            async with awake.timeout(PING_S):
                round_trip_ms = await self._ping(record)
        except TimeoutError:
            self.forget(record.peer)
            return DeadlineError(f"no answer to hello within {PING_S:.0f} s")
        except SwarmError as error:
            self.forget(record.peer)
            return error
        now_s = self._now_s()
        self._measured = {peer: entry for peer, entry in self._measured.items() if now_s - entry[1] < FORGET_S}
        self._measured[record.peer] = (round_trip_ms, now_s)
        return None

    def close(self) -> None:
        """End what is under way."""
        for task in list(self._asking.values()):
            task.cancel()

    def forget(self, peer: PeerId) -> None:
        """The peer failed: its round trip is measured anew before it is used again."""
        self._measured.pop(peer, None)

    def round_trip_ms(self, peer: PeerId) -> float:
        """Milliseconds to `peer` and back; the longest known way where it was never measured: unknown is not near."""
        entry = self._measured.get(peer)
        return entry[0] if entry is not None else max((ms for ms, _ in self._measured.values()), default=0.0)

    def between_ms(self, a: PeerRecord | None, b: PeerRecord | None) -> float:
        """One-way milliseconds; None is this peer. Between two others: what they announce, else the longer of our own ways.

        What they announce is a claim: it cannot be shorter than the difference of our own ways to the two (the triangle inequality),
        and if they disagree, the longer one counts.
        """
        if a is None or b is None:
            other = a or b
            return 0.0 if other is None else self.round_trip_ms(other.peer) / 2
        ours = self.round_trip_ms(a.peer), self.round_trip_ms(b.peer)
        announced = max(dict(a.round_trips).get(b.peer, 0.0), dict(b.round_trips).get(a.peer, 0.0))
        return max(announced, abs(ours[0] - ours[1])) / 2 if announced else max(ours) / 2
