"""Asks peers for something small until one gives it.

A few are asked side by side, those that have delivered before first. Each peer has a time slice (`Turn`), renewed by every part that it
sends. If others wait, a peer goes to the end of the queue after its time slice; the next one is twice as long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocols.errors import DiskFullError, NoRouteError, OverloadedError, SwarmError
from protocols.ids import short_peer
from protocols.records import PeerRecord
from swarm.clock import SYSTEM, Clock
from swarm.weights.reputation import Reputation

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Peers that are asked side by side."""

JOIN_S = (0.25, 1.0, 3.0)
"""One more is asked beside those before if for so long: none of them has answered; none has sent a part; no further part has come."""

RENEW_S = 10.0
"""So often one more is asked though parts come: what comes may be too slow to be of use."""

TURN_S = 3.0
"""A peer from which nothing comes for so long gives its place to one that waits."""

MAX_TURN_S = 32.0

PAUSE_S = 2.0
"""A peer that has no place for us now is asked again after this."""

MAX_RENEWALS = 10.0
"""While parts come, the time limit is renewed: at most so many times its length."""

T = TypeVar("T")


class Turn:
    """One peer's turn."""

    def __init__(self, allowed_s: float, now_s: Callable[[], float]) -> None:
        self._allowed_s, self._now_s = allowed_s, now_s
        self._started_s = self.renewed_s = now_s()
        self.num_parts = 0

    def renew(self) -> None:
        """It has answered, or another part has come."""
        self.renewed_s = self._now_s()
        self.num_parts += 1

    def _part_s(self) -> float:
        """Twice the time that a part took so far: a slow line is no silence."""
        return min(MAX_TURN_S, 2 * (self.renewed_s - self._started_s) / max(1, self.num_parts))

    def join_s(self) -> float:
        """After so long a silence another peer is asked beside this one."""
        return max(JOIN_S[min(self.num_parts, 2)], self._part_s() if self.num_parts >= 2 else 0.0)

    def is_over(self, now_s: float) -> bool:
        return now_s - self.renewed_s > max(self._allowed_s, self._part_s())


AskPeer = Callable[[PeerRecord, Turn], Awaitable[T]]


@dataclass(slots=True)
class _Waiting:
    record: PeerRecord
    turn_s: float = TURN_S
    from_s: float = 0.0


class Inquiry(Generic[T]):
    """One thing that is asked for. `reputation` hears who gave it and who did not."""

    def __init__(
        self, records: Sequence[PeerRecord], ask: AskPeer[T], what: str, reputation: Reputation, clock: Clock = SYSTEM
    ) -> None:
        """records: in the order in which to ask. what: for people."""
        self._waiting = deque(_Waiting(record) for record in records)
        self._ask, self._what, self._reputation, self._now_s = ask, what, reputation, clock.now_s
        self._running: dict[asyncio.Task[T], tuple[_Waiting, Turn]] = {}
        self._gave_way: set[asyncio.Task[T]] = set()
        self._failure: SwarmError | None = None
        self._joined_s = float("-inf")

    async def result(self, timeout_s: float) -> T:
        """What the first peer that can gives; NoRouteError if none of them does within `timeout_s`; DiskFullError is ours."""
        began_s = self._now_s()
        ends_at_s = began_s + timeout_s
        try:
            while (self._running or self._waiting) and self._now_s() < ends_at_s:
                self._start(self._now_s())
                await self._wait(ends_at_s)
                for task in [task for task in self._running if task.done()]:
                    who, _turn = self._running.pop(task)
                    fault = task.exception()
                    if fault is None:
                        self._reputation.gave(who.record.peer, 1)
                        return task.result()
                    self._failed(who, fault)
                came_s = max((turn.renewed_s for _, turn in self._running.values() if turn.num_parts >= 2), default=began_s)
                ends_at_s = min(max(ends_at_s, came_s + timeout_s), began_s + MAX_RENEWALS * timeout_s)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, *self._gave_way, return_exceptions=True)
        why = self._failure or ("no peer answered in time" if self._running or self._waiting else "no peer serves it")
        raise NoRouteError(
            f"no peer gave {self._what}: {why}; try again when one is up, or give a directory that holds the model"
        ) from self._failure

    async def _wait(self, ends_at_s: float) -> None:
        left_s = min(JOIN_S[0], max(0.0, ends_at_s - self._now_s()))
        if self._running:
            await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(left_s)

    def _start(self, now_s: float) -> None:
        """Give places to those that wait: the first at once, the next as `_may_join` says."""
        while ready := next((one for one in self._waiting if one.from_s <= now_s), None):
            if not self._may_join(now_s) or (len(self._running) >= AT_ONCE and not self._give_way(now_s)):
                return
            self._waiting.remove(ready)
            turn = Turn(ready.turn_s, self._now_s)
            task = asyncio.ensure_future(self._ask(ready.record, turn))
            self._running[task] = ready, turn
            self._joined_s = now_s

    def _may_join(self, now_s: float) -> bool:
        turns = [turn for _, turn in self._running.values()]
        return now_s - self._joined_s > RENEW_S or all(now_s - turn.renewed_s > turn.join_s() for turn in turns)

    def _give_way(self, now_s: float) -> bool:
        """End the turn of the peer that was silent for longest, if it is over."""
        task, (who, turn) = min(self._running.items(), key=lambda item: item[1][1].renewed_s)
        if not turn.is_over(now_s):
            return False
        del self._running[task]
        self._gave_way.add(task)
        task.cancel()
        self._reputation.failed(who.record.peer)
        self._waiting.append(_Waiting(who.record, min(2 * who.turn_s, MAX_TURN_S)))
        return True

    def _failed(self, who: _Waiting, fault: BaseException) -> None:
        if not isinstance(fault, SwarmError) or isinstance(fault, DiskFullError):
            raise fault
        self._failure = fault
        log.warning("%s: not from peer %s: %s", self._what, short_peer(who.record.peer), fault)
        if isinstance(fault, OverloadedError):
            self._waiting.append(_Waiting(who.record, who.turn_s, self._now_s() + PAUSE_S))
        else:
            self._reputation.failed(who.record.peer)
