"""The background loop: one daemon thread with an asyncio loop per process, where everything of the swarm lives.

Models are called from any thread and from any loop; their sessions and peers run here. `run` waits for a coroutine from a thread
and lets Ctrl-C cancel it; `wait` does so from another loop. At exit, what is registered with `at_exit` is ended first.

The thread is the loop's keeper. Whoever waits for a step of a model (`run_here`) borrows the loop and turns it meanwhile: a token then
comes without two changes of threads.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")

EXIT_S = 5.0
"""Longest wait at exit for what was registered with `at_exit`."""

STILL_S = 0.05
"""How long the loop may stand still between two errands of whoever borrows it."""


class _Errand(Generic[T]):
    """A coroutine that runs on the loop while a thread waits for it.

    What `asyncio.run_coroutine_threadsafe` does with two futures and a condition takes a lock here, and one turn of the loop less.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._running = threading.Lock()
        self._running.acquire()
        self._values: list[T] = []
        self._error: BaseException | None = None
        self.is_interrupted = False

    def start(self) -> None:
        """On the loop."""
        self._task = asyncio.ensure_future(self._run())

    def cancel(self) -> None:
        """On the loop; harmless after its end."""
        if self._task is not None:
            self._task.cancel()

    async def here(self, stop: Callable[[], None]) -> T:
        """Instead of `start`, for whoever turns the loop: `stop` ends its turning."""
        self._task = asyncio.current_task()
        try:
            return await self._coroutine
        finally:
            stop()

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
    """An asyncio loop with a daemon thread of its own, its keeper, who lends it to threads that wait for a short errand."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._seat = threading.Lock()
        """Held by whoever turns the loop."""
        self._lock = threading.Lock()
        """Guards the three fields below."""
        self._is_lent = False
        self._num_lent = 0
        self._num_busy = 0
        """Errands and calls of other threads that have not ended: whoever turns the loop may not leave it standing."""
        self._is_needed = threading.Event()
        self._has_ended = False
        self._endings: list[Callable[[], Awaitable[None]]] = []
        self._keeper = threading.Thread(target=self._keep, name="murmuration", daemon=True)
        self._keeper.start()
        atexit.register(self._end)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` on the loop and return at once."""
        self._need()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._need_no_more())
        return future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from a thread. Whatever interrupts the wait (Ctrl-C) cancels it, and passes on."""
        assert threading.current_thread() is not self._keeper, "the background loop cannot wait for itself"
        errand = _Errand(coroutine)
        self._need()
        try:
            self._loop.call_soon_threadsafe(errand.start)
            return errand.result()
        except BaseException:
            self.call_soon(errand.cancel)
            raise
        finally:
            self._need_no_more()

    def run_here(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, but where nobody else needs the loop, this thread turns it meanwhile, which saves two changes of threads.

        After it the loop stands still, for `STILL_S` at most, since the next errand may be near. `coroutine` must start nothing that
        would end with this thread (a child process that dies with who started it).
        """
        if asyncio._get_running_loop() is not None or not self._borrow():
            return self.run(coroutine)
        errand, task = _Errand(coroutine), None
        try:
            with _CtrlC(errand, self._loop):
                task = self._loop.create_task(errand.here(self._loop.stop))
                while not task.done():  # the stop of an errand that was given up may come late
                    self._loop.run_forever()
            return task.result()
        except BaseException as error:
            if task is not None and not task.done():  # it was raised by a signal's handler while the loop waited
                self.call_soon(errand.cancel)
            if isinstance(error, asyncio.CancelledError):
                raise (KeyboardInterrupt if errand.is_interrupted else CancelledError) from None
            raise
        finally:
            self._give_back()

    async def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from another loop; cancelling the wait cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop, from any thread; once the loop has ended, nothing happens."""
        if not self._has_ended:
            self._need()
            self._loop.call_soon_threadsafe(self._call, function)

    def _call(self, function: Callable[[], object]) -> None:
        self._need_no_more()
        function()

    def at_exit(self, ending: Callable[[], Awaitable[None]]) -> None:
        """Await `ending()` on the loop when the process ends."""
        self._endings.append(ending)

    def _end(self) -> None:
        if not self._keeper.is_alive():  # a forked child has the object, but not the thread
            return

        async def endings() -> None:
            await asyncio.wait_for(asyncio.gather(*(ending() for ending in self._endings), return_exceptions=True), EXIT_S)

        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # the process ends anyway, and p2pd with it
            self.submit(endings()).result(EXIT_S + 1)
        self._has_ended = True
        self._loop.call_soon_threadsafe(self._stop_keeper)
        self._keeper.join(1.0)

    # --- who turns the loop

    def _need(self) -> None:
        with self._lock:
            self._num_busy += 1
            is_lent = self._is_lent
        if not is_lent:
            self._is_needed.set()

    def _need_no_more(self) -> None:
        with self._lock:
            self._num_busy -= 1

    def _borrow(self) -> bool:
        with self._lock:
            if self._is_lent or self._num_busy or self._has_ended:
                return False
            self._is_lent = True
        try:
            if not self._seat.acquire(blocking=False):
                self._loop.call_soon_threadsafe(self._stop_keeper)
                self._seat.acquire()
        except BaseException:
            self._is_lent = False
            raise
        return True

    def _give_back(self) -> None:
        self._seat.release()
        with self._lock:
            self._is_lent = False
            self._num_lent += 1
            is_needed = self._num_busy > 0
        if is_needed:
            self._is_needed.set()

    def _keep(self) -> None:
        while not self._has_ended:
            if not self._is_lent and self._seat.acquire(blocking=False):  # who has just asked for it goes first
                self._loop.run_forever()
                self._seat.release()
            self._wait_until_needed()

    def _stop_keeper(self) -> None:
        """On the loop: its borrower may be there already, and is not meant."""
        if threading.current_thread() is self._keeper:
            self._loop.stop()

    def _wait_until_needed(self) -> None:
        """Until somebody needs the loop whom no borrower serves, or nobody has borrowed it for a while."""
        num_seen = -1
        while self._is_lent or num_seen != self._num_lent:
            num_seen = self._num_lent
            if self._is_needed.wait(STILL_S):
                break
        self._is_needed.clear()


_handler_of, _set_handler = inspect.unwrap(signal.getsignal), inspect.unwrap(signal.signal)
"""Without the search for an enum's member: it takes 40 µs a token, since no handler of ours is one."""


class _CtrlC:
    """While this thread turns the loop, Ctrl-C must not be raised in whatever runs there just then: it cancels the errand.

    As `asyncio.Runner` does it, whose way costs 0.9 ms a call (Python 3.11 formats its handler three times).
    """

    of_main_thread: ClassVar[_CtrlC | None] = None
    """Of the call in which the main thread turns the loop just now."""

    def __init__(self, errand: _Errand[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._errand, self._loop = errand, loop
        self._is_ours = False

    def __enter__(self) -> None:
        is_main = threading.get_ident() == threading.main_thread().ident
        if is_main:
            _CtrlC.of_main_thread = self
        self._is_ours = is_main and _handler_of(signal.SIGINT) is signal.default_int_handler
        if self._is_ours:
            _set_handler(signal.SIGINT, self.interrupt)

    def __exit__(self, *_: object) -> None:
        if _CtrlC.of_main_thread is self:
            _CtrlC.of_main_thread = None
        if self._is_ours:
            _set_handler(signal.SIGINT, signal.default_int_handler)

    def interrupt(self, *_: object) -> None:
        if self._errand.is_interrupted:
            raise KeyboardInterrupt
        self._errand.is_interrupted = True
        self._loop.call_soon_threadsafe(self._errand.cancel)


def interrupt() -> None:
    """For a signal's handler of a caller: ends the main thread's wait for the swarm with KeyboardInterrupt, as Ctrl-C does."""
    waiting = _CtrlC.of_main_thread
    if waiting is None:
        raise KeyboardInterrupt
    waiting.interrupt()


_lock = threading.Lock()
_current: tuple[int, BackgroundLoop] | None = None


def background_loop() -> BackgroundLoop:
    """This process's loop, started at the first call; a forked child gets its own."""
    global _current
    with _lock:
        if _current is None or _current[0] != os.getpid():
            _current = (os.getpid(), BackgroundLoop())
        return _current[1]
