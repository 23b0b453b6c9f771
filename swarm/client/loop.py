"""The background loop: one daemon thread per process.

All of the swarm's asynchronous code runs there.

Models are called from any thread and from any loop; their sessions and peers run here. `run` waits for a coroutine from a thread
and lets Ctrl-C cancel it; `wait` does so from another loop. At exit, what is registered with `at_exit` is ended first, the newest
first: sessions before the peers that they need.

A thread that waits for a step of a model (`run_here`) runs the loop itself meanwhile, in place of the loop's own thread (`_keeper`): a
token then comes without two thread switches.

A forked child has the objects of its parent, but not the thread, and it shares the parent's sockets: it must neither use nor destroy
them. So every use is refused there, and what the loop holds is kept for ever; `background_loop` gives the child its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, ClassVar, Generic, TypeVar

from protocols.errors import BadRequestError

T = TypeVar("T")

EXIT_S = 5.0
"""Longest wait at exit for what was registered with `at_exit`."""

STILL_S = 0.05
"""Seconds that the loop may stand still between two calls of `run_here`."""


class _Errand(Generic[T]):
    """A coroutine that runs on the loop while a thread waits for it.

    As `asyncio.run_coroutine_threadsafe`, which takes two futures and a condition; this takes one lock, and one iteration of the loop less.
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
        """Instead of `start`, for the thread that runs the loop itself: `stop` stops the loop."""
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
    """An asyncio loop with a daemon thread of its own; a thread that waits for a short call may run the loop in its place."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._seat = threading.Lock()
        """Held by the thread that runs the loop."""
        self._lock = threading.Lock()
        """Guards the three fields below."""
        self._is_lent = False
        self._num_lent = 0
        self._num_busy = 0
        """Calls of other threads that have not ended: while there are some, the loop must not stand still."""
        self._is_needed = threading.Event()
        self._is_ending = self._has_ended = False
        self._endings: list[Callable[[], Awaitable[None]]] = []
        self._keeper = threading.Thread(target=self._keep, name="murmuration", daemon=True)
        self._keeper.start()
        atexit.register(self._end)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` on the loop and return at once."""
        self._check_process(coroutine)
        self._need()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._need_no_more())
        return future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from a thread. Whatever interrupts the wait (Ctrl-C) cancels it, and passes on."""
        self._check_process(coroutine)
        self._stop_daemons_at_exit()
        assert threading.current_thread() is not self._keeper, "the background loop cannot wait for itself"
        errand = _Errand(coroutine)
        self._need()
        try:
            self._loop.call_soon_threadsafe(errand.start)
            return errand.result()
        except BaseException:
            self.call_soon(errand.cancel)
            self._stop_daemons_at_exit()
            raise
        finally:
            self._need_no_more()

    def run_here(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, but if no other thread needs the loop, this thread runs it meanwhile, which saves two thread switches.

        After it the loop stands still for `STILL_S` at most, since the next call may come soon. `coroutine` must start nothing that
        would end with this thread (a child process that dies with its parent thread).
        """
        self._check_process(coroutine)
        if asyncio._get_running_loop() is not None or not self._borrow():
            return self.run(coroutine)
        errand, task = _Errand(coroutine), None
        try:
            with _CtrlC(errand, self._loop):
                task = self._loop.create_task(errand.here(self._loop.stop))
                while not task.done():  # the stop of a call that was given up may come late
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
            self._stop_daemons_at_exit()

    async def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine` from another loop; cancelling the wait cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop, from any thread; once the loop has ended, and in a forked child, nothing happens."""
        if not self._has_ended and os.getpid() == self._process:
            self._need()
            self._loop.call_soon_threadsafe(self._call, function)

    def _call(self, function: Callable[[], object]) -> None:
        self._need_no_more()
        function()

    def at_exit(self, ending: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Await `ending()` on the loop when the process ends, before those that were registered earlier. Returns what takes that back."""
        self._endings.append(ending)
        return lambda: self._endings.remove(ending) if ending in self._endings else None

    def _end(self) -> None:
        if os.getpid() != self._process:
            return
        self._is_ending = True
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # the process ends anyway, and p2pd with it
            self.submit(_end_all(self._endings[::-1])).result(EXIT_S + 1)
        self._has_ended = True
        self._loop.call_soon_threadsafe(self._stop_keeper)
        self._keeper.join(1.0)

    def _check_process(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            check_process(self._process)
        except BadRequestError:
            coroutine.close()
            raise

    def _stop_daemons_at_exit(self) -> None:
        """A daemon thread that asks while the process ends stops here, as Python stops it anywhere: an error would be printed."""
        if self._is_ending and threading.current_thread().daemon:
            threading.Event().wait()

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
        """Return once another thread needs the loop, or no thread has run it in `run_here` for a while."""
        num_seen = -1
        while self._is_lent or num_seen != self._num_lent:
            num_seen = self._num_lent
            if self._is_needed.wait(STILL_S):
                break
        self._is_needed.clear()


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


_handler_of, _set_handler = inspect.unwrap(signal.getsignal), inspect.unwrap(signal.signal)
"""Without the search for an enum's member: it takes 40 µs a token, since no handler of ours is one."""


class _CtrlC:
    """While this thread runs the loop, Ctrl-C is not raised in the task that runs just then: it cancels the call.

    As `asyncio.Runner` does it, whose way costs 0.9 ms a call (Python 3.11 formats its handler three times).
    """

    of_main_thread: ClassVar[_CtrlC | None] = None
    """Of the call in which the main thread runs the loop just now."""

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
