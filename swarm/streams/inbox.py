"""What waits for a session, bounded in number and bytes.

A hostile caller's largest frames must not fill a node's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from protocols.inference import History, Message, Reply, Step

POSITION_BYTES = 36
"""A position as Python holds it."""

_HEAVY = (Step, History, Reply)

T = TypeVar("T")


def weight(message: Message | Iterator[Message] | object) -> int:
    """Bytes that a waiting message keeps alive, about; those that are made only when they are sent weigh nothing."""
    if not isinstance(message, _HEAVY):
        return 0
    if isinstance(message, Reply):
        return message.num_bytes
    positions = message.positions or ()
    return message.payload.num_bytes + POSITION_BYTES * len(positions)


class Inbox(Generic[T]):
    """A queue whose `put` waits while there are `max_items`, or more than `max_bytes` (but for a single item)."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.num_bytes = 0
        self._queue: asyncio.Queue[tuple[T, int]] = asyncio.Queue(max_items)
        self._max_bytes = max_bytes
        self._has_room = asyncio.Event()

    def __len__(self) -> int:
        return self._queue.qsize()

    async def put(self, item: T, num_bytes: int = 0) -> None:
        """Wait until `item` fits, then queue it."""
        while self.num_bytes and self.num_bytes + num_bytes > self._max_bytes:
            self._has_room.clear()
            await self._has_room.wait()
        self.num_bytes += num_bytes
        try:
            await self._queue.put((item, num_bytes))
        except BaseException:
            self._take(num_bytes)
            raise

    async def get(self) -> T:
        item, num_bytes = await self._queue.get()
        self._take(num_bytes)
        return item

    async def drain(self, each: Callable[[T], object]) -> None:
        """Take every item out, those that wait to be put included, and call `each` with it."""
        while len(self):
            item, num_bytes = self._queue.get_nowait()
            self._take(num_bytes)
            each(item)
            await asyncio.sleep(0)  # one that waits may put now

    def _take(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes
        self._has_room.set()
