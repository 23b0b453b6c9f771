"""Handles a message in the event-loop iteration that received it.

A coroutine that has run up to its first wait, and a queue that tells when that may be done.

A task takes from its queue at the event loop's next turn, and a turn is 20 to 30 µs of a token at each place. (Python 3.12 has eager
tasks for it, 3.11 none.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Begun(Awaitable[None]):
    """Runs `coroutine` up to its first wait, here and now; what it raises, `await` raises. Await it once, in one task.

    In its first part there is no task of its own: it must not ask for the current one (`asyncio.timeout` does).
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._error: BaseException | None = None
        self._waits_for: Any = None
        self._is_over = False
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration:
            self._is_over = True
        except Exception as error:
            self._is_over, self._error = True, error

    def __await__(self) -> Generator[Any, Any, None]:
        if self._error is not None:
            raise self._error
        while not self._is_over:
            try:
                value = yield self._waits_for
            except BaseException as error:
                self._go_on(self._coroutine.throw, error)
            else:
                self._go_on(self._coroutine.send, value)

    def _go_on(self, step: Callable[[Any], Any], given: Any) -> None:
        try:
            self._waits_for = step(given)
        except StopIteration:
            self._is_over = True


class AwaitedQueue(asyncio.Queue[T]):
    """A queue for one taker, which tells whether that waits: then what is put in may begin at once, and be put in as `Begun`."""

    is_awaited = False

    async def get(self) -> T:
        self.is_awaited = self.empty()
        try:
            return await super().get()
        finally:
            self.is_awaited = False

    def put_nowait(self, item: T) -> None:
        self.is_awaited = False
        super().put_nowait(item)
