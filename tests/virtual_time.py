"""An event loop whose time jumps to the next timer.

It does so once all tasks wait: a test of minutes takes milliseconds.

`@virtual_time` runs a test in one. Only for tests without sockets: an answer from outside takes real time, and the loop does not wait
for it. It does wait for threads that it has started (`asyncio.to_thread`): while one works, its time stands still.
The model is trio's `MockClock(autojump_threshold=0)`.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from swarm.clock import Clock

DEADLOCK_S = 5.0
"""Real seconds without an event, a timer or a thread of the loop, after which it reports a deadlock."""

LIMIT_S = 7 * 86_400.0
"""Virtual seconds that a test may take: beside a timer that repeats, tasks could wait for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at second 0; between two timers no time passes."""

    def __init__(self, deadlock_s: float = DEADLOCK_S) -> None:
        self.now_s, self.num_threads, self.deadlock_s = 0.0, 0, deadlock_s
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, *arguments: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(*arguments)
        self.num_threads += 1
        future.add_done_callback(self._on_thread_done)
        return future

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        self.num_threads += 1  # the one that joins the others
        await super().shutdown_default_executor(*timeout)

    def _on_thread_done(self, _: object) -> None:
        self.num_threads -= 1


class _Jumping(selectors.DefaultSelector):
    """What the loop waits with: it waits for nothing but threads."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.num_threads and timeout != 0:
            return super().select()
        events = super().select(self._loop.deadlock_s if timeout is None else 0)
        assert events or timeout is not None, f"at {self._loop.now_s} s every task waits, and no timer is set: a deadlock"
        if not events:
            self._loop.now_s += timeout or 0.0
            assert self._loop.now_s <= LIMIT_S, f"the test goes on after {LIMIT_S} s: a deadlock beside a timer that repeats"
        return events


def virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run this test in a `VirtualLoop` of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*arguments, **named))

    return run


@dataclass
class Shifted:
    """This machine's clock, moved on by hand: for tests with sockets, of parts that remember something for a minute."""

    ahead_s: float = 0.0

    def clock(self) -> Clock:
        return Clock(now_s=lambda: time.monotonic() + self.ahead_s, unix_s=lambda: time.time() + self.ahead_s)


def loop_clock() -> Clock:
    """The running loop's time, virtual or not; its second 0 is the Unix time 1,000,000,000."""
    loop = asyncio.get_running_loop()
    return Clock(now_s=loop.time, unix_s=lambda: 1e9 + loop.time())
