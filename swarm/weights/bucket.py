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
        if self._at_s is not None:
            self._level = min(self._burst, self._level + (now_s - self._at_s) * self._bytes_s)
        self._at_s = now_s
        self._level -= num_bytes
        return max(0.0, -self._level / self._bytes_s)
