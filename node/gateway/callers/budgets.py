"""How much a caller may ask: requests per minute, tokens per day.

Policy without a clock: each function is given the time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MINUTE_S = 60.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of a budget."""

    limit: int
    remaining: int
    reset_s: float
    """Seconds until all of it is there again, if nothing more is used."""

    wait_s: float
    """Seconds until something of it is there; 0 = now."""


@dataclass(slots=True)
class RequestBudget:
    """At most `limit` requests in any 60 seconds."""

    limit: int
    _taken_s: deque[float] = field(default_factory=deque)
    """When each request of the last minute came; at most `limit`."""

    def take(self, now_s: float) -> bool:
        """Whether one more request is within the budget; if so, it is counted. Times never go back."""
        self._forget(now_s)
        if len(self._taken_s) >= self.limit:
            return False
        self._taken_s.append(now_s)
        return True

    def left(self, now_s: float) -> Left:
        self._forget(now_s)
        remaining = self.limit - len(self._taken_s)
        reset_s = self._taken_s[-1] + MINUTE_S - now_s if self._taken_s else 0.0
        wait_s = 0.0 if remaining else self._taken_s[0] + MINUTE_S - now_s
        return Left(limit=self.limit, remaining=remaining, reset_s=reset_s, wait_s=wait_s)

    def _forget(self, now_s: float) -> None:
        while self._taken_s and self._taken_s[0] <= now_s - MINUTE_S:
            self._taken_s.popleft()


@dataclass(slots=True)
class TokenBudget:
    """At most `limit` tokens in each day of UTC; answers that run side by side may exceed it by one token each."""

    limit: int
    _day: int = 0
    _used: int = 0

    @property
    def spent(self) -> tuple[int, int]:
        """The day of UTC, counted from 1970, and the tokens that were used in it."""
        return self._day, self._used

    def resume(self, day: int, used: int) -> None:
        """Go on from what `spent` said."""
        self._day, self._used = day, used

    def take(self, num_tokens: int, unix_s: float) -> bool:
        """Whether so many more tokens leave something for an answer; if so, they are counted."""
        if num_tokens >= self.left(unix_s).remaining:
            return False
        self._used += num_tokens
        return True

    def add(self, num_tokens: int, unix_s: float) -> bool:
        """Count tokens that have come, also beyond the limit. Returns whether there may be more."""
        self.left(unix_s)
        self._used += num_tokens
        return self._used < self.limit

    def left(self, unix_s: float) -> Left:
        day = int(unix_s // DAY_S)
        if day > self._day:  # a clock that was set back begins no new day
            self._day, self._used = day, 0
        reset_s = max(0.0, (self._day + 1) * DAY_S - unix_s) if self._used else 0.0
        remaining = max(0, self.limit - self._used)
        return Left(limit=self.limit, remaining=remaining, reset_s=reset_s, wait_s=0.0 if remaining else reset_s)


def duration(seconds: float) -> str:
    """As OpenAI writes it in headers: `120ms`, `2s`, `6m0s`, `17h3m20s`. Rounded up, so that waiting so long is enough."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def headers(requests: Left | None, tokens: Left | None) -> dict[str, str]:
    """OpenAI's headers of the budgets that there are."""
    found = {}
    for name, left in (("requests", requests), ("tokens", tokens)):
        if left is not None:
            found[f"x-ratelimit-limit-{name}"] = str(left.limit)
            found[f"x-ratelimit-remaining-{name}"] = str(left.remaining)
            found[f"x-ratelimit-reset-{name}"] = duration(left.reset_s)
    return found


def after_s(wait_s: float) -> int:
    """What Retry-After says: whole seconds, and at least one."""
    return max(1, math.ceil(wait_s))
