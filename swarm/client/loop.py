"""The background loop: one daemon thread per process.

All of the swarm's asynchronous code runs there.

Models are called from any thread and from any loop; their sessions and peers run here. `run` waits for a coroutine from a thread
and lets Ctrl-C cancel it; `wait` does so from another loop. At exit, what is registered with `at_exit` is ended first, the newest
first: sessions before the peers that they need. What runs here does not see the caller's context: a stream's reader would keep what is in
it, such as a forward's output, alive for as long as the stream.

A forked child has the objects of its parent, but not the thread, and it shares the parent's sockets: it must neither use nor destroy
them. So every use is refused there, and what the loop holds is kept for ever; `background_loop` gives the child its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from protocols.errors import BadRequestError

T = TypeVar("T")

EXIT_S = 5.0
"""Longest wait at exit for what was registered with `at_exit`."""

SIGNAL_S = 0.5
"""Longest uninterrupted wait of a thread: CPython handles a signal that comes just when a wait begins only when that wait ends."""


class _Call(Generic[T]):
    """A coroutine that runs on the loop while a thread waits for it.

    Not `asyncio.run_coroutine_threadsafe`: what a signal's handler raises inside it, or inside a future's `result`, may leave the
    coroutine running or a lock of the future held for ever. The methods of `SimpleQueue` are C, so they are not cut in the middle.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._ended: SimpleQueue[asyncio.Task[T]] = SimpleQueue()

    def start(self) -> None:
        """On the loop."""
        self._task = asyncio.ensure_future(self._coroutine)
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """On the loop; harmless after its end."""
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # else asyncio logs it if the thread waits no more
        self._ended.put(task)

    def result(self) -> T:
        """Once, in the waiting thread; a signal's handler may interrupt it."""
        while True:
            with contextlib.suppress(Empty):
                task = self._ended.get(timeout=SIGNAL_S)
                break
        try:
            return task.result()
        except asyncio.CancelledError:
            raise CancelledError from None


class BackgroundLoop:
    """An asyncio loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._is_ending = False
        self._endings: list[Callable[[], Awaitable[None]]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="murmuration", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` on the loop and return at once. BadRequestError in a forked child, and once the loop has ended."""
        self._check(coroutine)
        return Context().run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from a thread. Whatever interrupts the wait (Ctrl-C) cancels it, and passes on at once.

        `concurrent.futures.CancelledError` if it was cancelled on the loop. BadRequestError in a forked child, and once the loop has
        ended.
        """
        self._stop_daemons_at_exit()
        self._check(coroutine)
        assert threading.current_thread() is not self._thread, "the background loop cannot wait for itself"
        call = _Call(coroutine)
        try:
            self._loop.call_soon_threadsafe(call.start, context=Context())
            return call.result()
        except BaseException:
            self.call_soon(call.cancel)
            raise
        finally:
            self._stop_daemons_at_exit()

    async def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from another loop; cancelling the wait cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop, from any thread; once the loop has ended, and in a forked child, nothing happens."""
        if self._thread.is_alive():  # Python marks the parent's threads as ended in a forked child
            self._loop.call_soon_threadsafe(function, context=Context())

    def at_exit(self, ending: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Await `ending()` on the loop when the process ends, before those that were registered earlier. Returns what takes that back."""
        self._endings.append(ending)
        return lambda: self._endings.remove(ending) if ending in self._endings else None

    def _end(self) -> None:
        if not self._thread.is_alive():  # a forked child
            return
        self._is_ending = True
        with contextlib.suppress(TimeoutError):  # the process ends anyway
            self.submit(_end_all(self._endings[::-1])).result(EXIT_S + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    def _check(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            check_process(self._process)
            if not self._thread.is_alive():  # an atexit handler that was registered before the loop's own runs after it
                raise BadRequestError("this process ends, and its background loop has ended: call the model earlier")
        except BadRequestError:
            coroutine.close()
            raise

    def _stop_daemons_at_exit(self) -> None:
        """A daemon thread that asks while the process ends stops here, as Python stops it anywhere: an error would be printed."""
        if self._is_ending and threading.current_thread().daemon:
            threading.Event().wait()


async def _end_all(endings: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """One after the other, each with half of the time that is left; then what still runs is cancelled, as `asyncio.run` does it."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + EXIT_S
    for ending in endings:
        with contextlib.suppress(Exception):  # the next one must still be ended
            async with asyncio.timeout((ends_at - loop.time()) / 2):
                await ending()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=(ends_at - loop.time()) / 2)


def check_process(owner: int) -> None:
    """BadRequestError in a process that is not `owner`: a fork of it."""
    if (process := os.getpid()) != owner:
        raise BadRequestError(
            f"this model belongs to process {owner}, and this is process {process}, a fork of it: connections do not survive a fork; "
            "call from_pretrained in this process"
        )


_lock = threading.Lock()
_current: BackgroundLoop | None = None
_is_forked = False
_renewals: list[Callable[[], object]] = []


def background_loop() -> BackgroundLoop:
    """This process's loop, started at the first call; a forked child gets its own."""
    global _current, _is_forked
    with _lock:
        if _is_forked:
            for renew in _renewals:
                renew()
            _is_forked = False
        if _current is None:
            _current = BackgroundLoop()
        return _current


def in_forked_child(renew: Callable[[], object]) -> None:
    """Call `renew()` in a forked child before its loop is made, if the parent had one."""
    _renewals.append(renew)


def _disown() -> None:
    """In a forked child. The parent's loop, and with it its connections, is never destroyed here: a destructor would unregister the
    parent's sockets from an epoll that both processes share, or say good-bye to its peers."""
    global _current, _lock, _is_forked
    if _current is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_current))
        _is_forked = True
    _current, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_disown)
