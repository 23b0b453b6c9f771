"""Limits what each caller may cost us in a time window."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

MAX_CALLERS = 4_096
"""Callers that are counted, the newest. One that is pushed out begins anew, so it must cost something to be another."""


class Meter:
    """At most `limit` units a caller in each window of `window_s` seconds. clock: monotonic seconds."""

    def __init__(self, limit: float, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.window_s = limit, window_s
        self._clock = clock
        self._spent: dict[Hashable, tuple[float, float]] = {}
        """When a caller's window began, and what it has spent since."""

    def spend(self, caller: Hashable, units: float = 1.0) -> bool:
        """Count it and return True; False, and nothing counted, if the caller's limit does not allow it."""
        now_s = self._clock()
        since_s, spent = self._spent.pop(caller, (now_s, 0.0))
        if now_s - since_s >= self.window_s:
            since_s, spent = now_s, 0.0
        is_allowed = spent + units <= self.limit
        self._spent[caller] = since_s, spent + units if is_allowed else spent
        while len(self._spent) > MAX_CALLERS:
            del self._spent[next(iter(self._spent))]
        return is_allowed
