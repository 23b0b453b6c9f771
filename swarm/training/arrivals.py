"""How long micro-batches take, and from when on one is late."""

from __future__ import annotations

from collections import deque
from statistics import median

NUM_KEPT = 64
"""Past micro-batches that count."""

DEVIATIONS = 5.0
"""Median absolute deviations beyond the median at which one is late."""

LEAST_DEVIATION = 0.2
"""A deviation is at least so much of the median: times that are all equal say little about the next one."""


class Arrivals:
    """Durations in seconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=NUM_KEPT)

    def add(self, seconds: float) -> None:
        """One more came back after so long."""
        self._seconds.append(seconds)

    def limit_s(self) -> float | None:
        """Median plus DEVIATIONS median absolute deviations; None before the first."""
        if not self._seconds:
            return None
        middle = median(self._seconds)
        deviation = median(abs(seconds - middle) for seconds in self._seconds)
        return middle + DEVIATIONS * max(deviation, LEAST_DEVIATION * middle)
