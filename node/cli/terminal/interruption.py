"""Ctrl-C in a chat: the first stops, the second leaves.

The first asks the answer to end after the token that is under way, so that the session at the nodes stays usable. If no token
comes within `GRACE_S`, the wait itself is ended. Source of the alarm: `signal.setitimer`, which reaches a main thread that waits.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from node.cli.terminal import stopping

LEAVE_S = 1.0
"""Seconds within which a second Ctrl-C leaves the chat."""

GRACE_S = 0.5
"""Longest wait for the token that is under way."""


class Interruption:
    """The person's Ctrl-C, from the main thread of a chat on a terminal."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = float("-inf")
        self._is_warned = False
        self.has_stopped = False
        """The last answer was stopped."""
        self.is_leaving = False
        """A second Ctrl-C has come within `LEAVE_S`."""

    @contextlib.contextmanager
    def answering(self, halt: Callable[[], None], stop_now: Callable[[], None]) -> Iterator[None]:
        """While an answer runs. halt: asks it to end soon. stop_now: ends its wait with KeyboardInterrupt, which goes no further here.

        After a second Ctrl-C within `LEAVE_S`, KeyboardInterrupt is raised: the person leaves.
        """
        self.has_stopped = is_leaving = False
        is_running = True

        def pressed(*_: object) -> None:
            nonlocal is_leaving
            is_leaving = is_leaving or self._is_second()
            self.has_stopped = True
            halt()
            if is_leaving:
                stop_now()
            else:
                signal.setitimer(signal.ITIMER_REAL, GRACE_S)

        def waited(*_: object) -> None:
            if is_running:
                stop_now()

        before = signal.signal(signal.SIGINT, pressed), signal.signal(signal.SIGALRM, waited)
        try:
            yield
        except KeyboardInterrupt:
            if not self.has_stopped:
                raise
        finally:
            is_running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGINT, before[0])
            signal.signal(signal.SIGALRM, before[1])
        if is_leaving:
            self.is_leaving = True
            raise KeyboardInterrupt

    def at_prompt(self) -> bool:
        """Ctrl-C while the chat waits for a line; True: the person leaves."""
        is_second = self._is_second() or self._is_warned
        self._is_warned = True
        return is_second

    def has_spoken(self) -> None:
        """A line has come: the next Ctrl-C is a first one again."""
        self._is_warned, self._last_s = False, float("-inf")

    def _is_second(self) -> bool:
        last_s, self._last_s = self._last_s, self._clock()
        return stopping.is_stopping() or self._last_s - last_s <= LEAVE_S
