"""Bounds the passes that one model has open at nodes.

A pass that waits for its backward keeps memory at each hop, and nodes allow a client a few. If another one needs the place, the oldest that
only waits is ended; its backward then runs its forward again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class OpenCalls:
    """Places for calls. All methods belong to one event loop."""

    def __init__(self, most: int) -> None:
        self._most, self._num_open, self._num_waiting = most, 0, 0
        self._idle: dict[object, Callable[[], None]] = {}
        """By owner, the oldest first: what ends its call, and leaves."""
        self._has_room = asyncio.Event()

    async def enter(self) -> None:
        """Take a place, as soon as there is one. `leave` gives it back."""
        while self._num_open >= self._most:
            if self._idle:
                self._end_oldest()
                continue
            self._has_room.clear()
            self._num_waiting += 1
            try:
                await self._has_room.wait()
            finally:
                self._num_waiting -= 1
        self._num_open += 1

    def leave(self) -> None:
        self._num_open -= 1
        self._has_room.set()

    def rest(self, owner: object, end: Callable[[], None]) -> None:
        """From now on the owner's call only waits: `end()` may be called, which must end it and `leave`. At once if others want a place."""
        self._idle[owner] = end
        if self._num_waiting:
            self._end_oldest()

    def resume(self, owner: object) -> None:
        """The call is used, or ended by its owner."""
        self._idle.pop(owner, None)

    def _end_oldest(self) -> None:
        owner = next(iter(self._idle))
        self._idle.pop(owner)()
