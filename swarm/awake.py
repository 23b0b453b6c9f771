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
"""So long before a deadline it is looked at how late it is: timers that are due together run in the order of their times."""


@asynccontextmanager
async def timeout(limit_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, with a limit that starts again if its end is noticed STOPPED_S late or later. TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limit_s) as limit:

        def look() -> None:
            nonlocal timer, at_s
            if loop.time() - at_s >= STOPPED_S:
                at_s = loop.time() + limit_s - LOOK_S
                timer = loop.call_at(at_s, look)
                limit.reschedule(at_s + LOOK_S)

        at_s = loop.time() + limit_s - LOOK_S
        timer = loop.call_at(at_s, look)
        try:
            yield
        finally:
            timer.cancel()
