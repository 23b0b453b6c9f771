"""How a wait is shown to a person or a script.

One changing line on a terminal, else a plain line on stderr now and then.

`for_person` and `for_script` decide; `shown` asks them a few times a second while something is waited for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from node.cli.terminal import status_line
from node.cli.terminal.status_line import LINE
from protocols.words import one_line
from swarm.waiting import ANSWERING, OnWait, Wait

PERSON_S = 0.4
"""A wait shorter than this is not shown."""

ANSWER_S = 3.0
"""The same for one step's answer: a slow model takes a second for each token, and that is no news."""

SCRIPT_S = 5.0
"""A script gets its first line after this long."""

REPEAT_S = 60.0
"""A script is told again after this long."""

ESTIMATE_S = 2.0
"""Seconds until the first estimate of what is left: an earlier one would jump."""

LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Said:
    """What a script was told last, and when."""

    key: tuple[str, str]
    at_s: float


def for_person(wait: Wait, since_s: float, now_s: float, at_first: int = 0) -> str | None:
    """The line, or None if it is too early. since_s: when this wait began. at_first: how much was done then."""
    shown_after_s = ANSWER_S if wait.kind == ANSWERING.kind else PERSON_S
    return worded(wait, since_s, now_s, at_first) if now_s - since_s >= shown_after_s else None


def for_script(wait: Wait, since_s: float, now_s: float, said: Said | None, at_first: int = 0) -> str | None:
    """A line, or None if it is too early, or the same was said within the last minute."""
    if now_s - since_s < SCRIPT_S:
        return None
    is_news = said is None or said.key != wait.key or now_s - said.at_s >= REPEAT_S
    return worded(wait, since_s, now_s, at_first) if is_news else None


def worded(wait: Wait, since_s: float, now_s: float, at_first: int = 0) -> str:
    """`waiting for blocks 24:30, no live node hosts them (12 s of 60)`, or `hashing the weights of tiny: 40 % (20 s, 30 s left)`."""
    if wait.route_timeout_s is None:
        left_s = seconds_left(wait, now_s - since_s, at_first)
        return f"{wait} ({now_s - since_s:.0f} s{'' if left_s is None else f', {_short(left_s)} left'})"
    return f"{wait} ({min(now_s - wait.since_s, wait.route_timeout_s):.0f} s of {wait.route_timeout_s:.0f})"


def seconds_left(wait: Wait, seconds: float, at_first: int) -> float | None:
    """An estimate, by the mean speed so far; None if it is too early for one, or it is not known how far the wait is."""
    done = wait.done - at_first
    if seconds < ESTIMATE_S or not wait.total or done <= 0:
        return None
    return seconds * max(0, wait.total - wait.done) / done


def _short(seconds: float) -> str:
    """`30 s`, `4 min`, `2 h`."""
    for unit, length in (("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class Board:
    """What is waited for now, and a thread that shows it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._wait: Wait | None = None
        self._since_s = 0.0
        self._at_first = 0
        self._said: Said | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="waiting", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.set(None)
        self._over.set()
        self._thread.join()

    def set(self, wait: Wait | None) -> None:
        """This is waited for now. With None the line is gone when this returns, so that a prompt may be printed there."""
        with self._lock:
            if wait is not None and (self._wait is None or wait.key != self._wait.key):
                self._since_s, self._at_first = self._clock(), wait.done
            self._wait = wait
            if wait is None and LINE.is_drawn:
                LINE.erase()

    def look(self) -> None:
        """Show what is to be shown now."""
        with self._lock:
            if self._wait is None or sys.stderr is None:
                return
            now_s = self._clock()
            if status_line.is_usable():
                if (line := for_person(self._wait, self._since_s, now_s, self._at_first)) is not None:
                    LINE.draw(line)
            elif (line := for_script(self._wait, self._since_s, now_s, self._said, self._at_first)) is not None:
                self._said = Said(self._wait.key, now_s)
                with contextlib.suppress(OSError, ValueError):  # stderr is gone, which is for others to say
                    print(one_line(line), file=sys.stderr, flush=True)

    def _keep_looking(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look()


@contextlib.contextmanager
def shown() -> Iterator[OnWait]:
    """While this lasts, what is told to `on_wait` is shown; nothing of it is left on a terminal afterwards."""
    board = Board()
    board.start()
    try:
        yield board.set
    finally:
        board.stop()
