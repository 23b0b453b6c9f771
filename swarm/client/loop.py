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
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_S = 5.0
"""Longest wait at exit for what was registered with `at_exit`."""


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
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
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
