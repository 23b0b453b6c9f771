"""Interleaved repeats, with best and median.

All paths run in turn, many times, so that a busy moment of the machine hits them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

T = TypeVar("T")


def interleaved(paths: Mapping[str, Callable[[], T]], repeats: int, title: str) -> dict[str, list[T]]:
    """Results of every path, `repeats` times in turn, after one round that is not counted."""
    from rich.progress import track
    from volunteers import console

    runs: dict[str, list[T]] = {name: [] for name in paths}
    for repeat in track(range(repeats + 1), description=title, console=console, transient=True):
        for name, run in paths.items():
            result = run()
            if repeat:
                runs[name].append(result)
    return runs


def spread(values: Sequence[float], digits: int = 3, largest: bool = False) -> dict[str, float]:
    """Best and median; the best is the smallest, or the largest where more is better."""
    best = max(values) if largest else min(values)
    return {"best": round(best, digits), "median": round(statistics.median(values), digits)}


def beyond(there: Sequence[float], here: Sequence[float]) -> dict[str, float]:
    """Difference of the bests, and the median of the repeats' own."""
    own = [a - b for a, b in zip(there, here, strict=True)]
    return {"best": round(min(there) - min(here), 3), "median": round(statistics.median(own), 3)}


class Clock:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.at_s: list[float] = [time.perf_counter()]

    def put(self, value: Any) -> None:
        self.at_s.append(time.perf_counter())

    def end(self) -> None:
        pass

    def gaps_ms(self) -> list[float]:
        """Since the call for the first token (put number 2: the prompt itself is number 1), then from token to token."""
        times = [self.at_s[0], *self.at_s[2:]]
        return [(later - earlier) * 1e3 for earlier, later in pairwise(times)]


def decode_ms(model: Any, ids: Any, num_tokens: int, **options: Any) -> list[float]:
    """Greedy: milliseconds of each token, the first one (the prompt's) included."""
    clock = Clock()
    model.generate(ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, streamer=clock, **options)
    return clock.gaps_ms()
