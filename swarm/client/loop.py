"""The background loop: one daemon thread with an asyncio loop per process, where everything of the swarm lives.

Models are called from any thread and from any loop; their sessions and peers run here. `run` waits for a coroutine from a thread
and lets Ctrl-C cancel it; `wait` does so from another loop. At exit, what is registered with `at_exit` is ended first.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

EXIT_S = 5.0
"""Longest wait at exit for what was registered with `at_exit`."""


class _Errand(Generic[T]):
    """A coroutine that runs on the loop while a thread waits for it.

    What `asyncio.run_coroutine_threadsafe` does with two futures and a condition takes a lock here, and one turn of the loop less:
    a decoded token waits for both ways, so they count (docs/log.md).
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None
        self._running = threading.Lock()
        self._running.acquire()
        self._values: list[T] = []
        self._error: BaseException | None = None

    def start(self) -> None:
        """On the loop."""
        self._task = asyncio.ensure_future(self._run())

    def cancel(self) -> None:
        """On the loop."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self._values.append(await self._coroutine)
        except BaseException as error:  # the waiting thread raises it
            self._error = CancelledError() if isinstance(error, asyncio.CancelledError) else error
        finally:
            self._running.release()

    def result(self) -> T:
        """In the waiting thread; a signal's handler may interrupt it."""
        self._running.acquire()
        if self._error is not None:
            raise self._error
        return self._values[0]


class BackgroundLoop:
    """An asyncio loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="murmuration", daemon=True)
        self._thread.start()
        self._endings: list[Callable[[], Awaitable[None]]] = []
        atexit.register(self._end)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` on the loop and return at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from a thread. Whatever interrupts the wait (Ctrl-C) cancels it, and passes on."""
        assert threading.current_thread() is not self._thread, "the background loop cannot wait for itself"
        errand = _Errand(coroutine)
        self._loop.call_soon_threadsafe(errand.start)
        try:
            return errand.result()
        except BaseException:
            self.call_soon(errand.cancel)
            raise

    async def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from another loop; cancelling the wait cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop, from any thread; once the loop has ended, nothing happens."""
        if not self._loop.is_closed() and self._loop.is_running():
            self._loop.call_soon_threadsafe(function)

    def at_exit(self, ending: Callable[[], Awaitable[None]]) -> None:
        """Await `ending()` on the loop when the process ends."""
        self._endings.append(ending)

    def _end(self) -> None:
        if not self._thread.is_alive():  # a forked child has the object, but not the thread
            return

        async def endings() -> None:
            await asyncio.wait_for(asyncio.gather(*(ending() for ending in self._endings), return_exceptions=True), EXIT_S)

        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # the process ends anyway, and p2pd with it
            self.submit(endings()).result(EXIT_S + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)


_lock = threading.Lock()
_current: tuple[int, BackgroundLoop] | None = None


def background_loop() -> BackgroundLoop:
    """This process's loop, started at the first call; a forked child gets its own."""
    global _current
    with _lock:
        if _current is None or _current[0] != os.getpid():
            _current = (os.getpid(), BackgroundLoop())
        return _current[1]
