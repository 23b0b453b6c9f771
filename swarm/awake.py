"""Time limits that count only the time in which this process ran.

After SIGSTOP and SIGCONT, on a machine that was paused, or with no processor for a while, every deadline has passed at once. The answers
may be here already, unread, and no peer is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STOPPED_S = 1.0
"""If the end of a piece is noticed so late, this process did not run."""

PIECE_S = 0.25
"""A limit is counted in such pieces. A stop costs no piece if it lasts STOPPED_S, and one piece if it is shorter."""


@asynccontextmanager
async def timeout(limit_s: float) -> AsyncIterator[Watch]:
    """As `asyncio.timeout`, but a piece of the limit in which this process was stopped is counted anew. TimeoutError."""
    async with asyncio.timeout(None) as limit:
        watch = Watch(limit, limit_s)
        try:
            yield watch
        finally:
            watch.timer.cancel()


class Watch:
    """Counts one limit down."""

    def __init__(self, limit: asyncio.Timeout, limit_s: float) -> None:
        self._limit, self._left_s = limit, limit_s
        self._loop = asyncio.get_running_loop()
        self.was_stopped = False
        """This process was stopped meanwhile, so other deadlines, as gRPC's, may have passed."""
        self._begin()

    def _begin(self) -> None:
        self._piece_s = min(PIECE_S, self._left_s)
        self._ends_s = self._loop.time() + self._piece_s
        self.timer = self._loop.call_at(self._ends_s, self._look)

    def _look(self) -> None:
        if self._loop.time() - self._ends_s >= STOPPED_S:
            self.was_stopped = True
        else:
            self._left_s -= self._piece_s
        if self._left_s > 0:
            self._begin()
        else:
            self._limit.reschedule(self._loop.time())
