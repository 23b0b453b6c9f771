"""How fast the routes of one session may follow each other.

If there are too many, they wait, and only their own stream waits with them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

MAX_EPOCHS, EPOCHS_S = 5, 10.0
"""Epochs that one session may begin here in EPOCHS_S seconds. The next one is not refused, since many hops may die at once: it waits."""


def delay_s(begun_s: deque[float], now_s: float, epochs_s: float = EPOCHS_S) -> float:
    """Seconds until one more may begin. begun_s: when the last MAX_EPOCHS began, oldest first."""
    return max(0.0, begun_s[0] + epochs_s - now_s) if len(begun_s) == begun_s.maxlen else 0.0


class Pace:
    """The epochs of one session, in their order."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        *,
        epochs_s: float = EPOCHS_S,
    ) -> None:
        self._clock, self._sleep, self._epochs_s = clock, sleep, epochs_s
        self._newest = -1
        self._waiting: set[int] = set()
        self._begun_s: deque[float] = deque(maxlen=MAX_EPOCHS)
        self._turn = asyncio.Lock()

    @property
    def awaited(self) -> int:
        """The newest epoch that waits; -1 = none."""
        return max(self._waiting, default=-1)

    async def turn(self, epoch: int) -> None:
        """Return when a message of `epoch` may be taken: at once, if the epoch has begun or is over."""
        if epoch <= self._newest:
            return
        self._waiting.add(epoch)
        try:
            async with self._turn:
                await self._begin(epoch)
        finally:
            self._waiting.discard(epoch)

    async def _begin(self, epoch: int) -> None:
        while epoch > self._newest and (wait_s := delay_s(self._begun_s, self._clock(), self._epochs_s)) > 0:
            await self._sleep(wait_s)
        if epoch > self._newest:
            self._newest = epoch
            self._begun_s.append(self._clock())
