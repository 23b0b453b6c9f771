"""Time limits that start again if this process was stopped meanwhile.

After SIGSTOP and SIGCONT, on a machine that was paused, or with no processor for a while, every deadline has passed at once. The answers
may be here already, unread, and no peer is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STOPPED_S = 1.0
"""If a deadline is noticed so late, this process did not run."""

LOOK_S = 0.001
"""The watch looks so long before a deadline. Timers that are due together run in the order of their times, so it comes first."""


@asynccontextmanager
async def timeout(limit_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, with a limit that starts again if its end is noticed STOPPED_S late or later. TimeoutError."""
    async with asyncio.timeout(limit_s) as limit:
        watch = _Watch(limit, limit_s)
        try:
            yield
        finally:
            watch.timer.cancel()


class _Watch:
    """Looks just before a limit's end how late it is."""

    def __init__(self, limit: asyncio.Timeout, limit_s: float) -> None:
        self._limit, self._limit_s = limit, limit_s
        self._loop = asyncio.get_running_loop()
        self._start()

    def _start(self) -> None:
        self._at_s = self._loop.time() + self._limit_s - LOOK_S
        self.timer = self._loop.call_at(self._at_s, self._look)

    def _look(self) -> None:
        if self._loop.time() - self._at_s >= STOPPED_S:
            self._start()
            self._limit.reschedule(self._at_s + LOOK_S)
