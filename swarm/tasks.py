"""Tasks that one object owns until they end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """All methods belong to one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def keep(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """Run it beside, until it ends or `stop`."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def wait(self, within_s: float | None = None) -> None:
        """Return when all have ended, or after so many seconds (None: however long it takes)."""
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=within_s)

    async def stop(self) -> None:
        """Cancel what still runs, and return when it has ended."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
