"""Thins out numbered things so that what stays is spread evenly."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def spread(numbers: Sequence[int], count: int) -> frozenset[int]:
    """At most `count` (2 or more) of these ascending numbers, about as far from each other; the first and the last are among them. Pure.

    It goes by their values, so a list that is thinned out again and again, as it grows, stays as dense at its beginning as at its end.
    """
    if len(numbers) <= count:
        return frozenset(numbers)
    first, last = numbers[0], numbers[-1]
    wanted = (first + (last - first) * at // (count - 1) for at in range(count))
    return frozenset(numbers[bisect_left(numbers, number)] for number in wanted)
