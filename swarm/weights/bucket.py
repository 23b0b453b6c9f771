"""A token bucket: limits average bytes a second, allows short bursts.

The clock is an argument.
"""

from __future__ import annotations


class TokenBucket:
    """`delay_s` books bytes, and says how long to wait before they may be sent. The first to book goes first."""

    def __init__(self, bytes_s: float, burst_bytes: float) -> None:
        assert bytes_s > 0 and burst_bytes > 0
        self._bytes_s, self._burst = bytes_s, burst_bytes
        self._level = burst_bytes
        """Bytes that may go at once; below 0: so many are booked ahead."""
        self._at_s: float | None = None

    def delay_s(self, num_bytes: int, now_s: float) -> float:
        """Book `num_bytes`; 0 = send them now."""
        self._fill(now_s)
        self._level -= num_bytes
        return max(0.0, -self._level / self._bytes_s)

    def spend(self, num_bytes: int, now_s: float, max_debt_s: float) -> None:
        """Bytes that were sent in any case. What is booked after them waits no longer than `max_debt_s` for them."""
        self._fill(now_s)
        least = min(self._level, -max_debt_s * self._bytes_s)
        self._level = max(self._level - num_bytes, least)

    def _fill(self, now_s: float) -> None:
        if self._at_s is not None:
            self._level = min(self._burst, self._level + (now_s - self._at_s) * self._bytes_s)
        self._at_s = now_s
