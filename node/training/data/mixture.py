"""Several weighted sources: which one gives sequence number n.

Counts follow the weights at every moment, not only on average: of the first n sequences, a source has given n times its share to within
the number of sources. All in whole numbers, so each machine finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


class Mixture:
    """Sources in proportion to their weights; a pure function of n."""

    def __init__(self, weights: Sequence[Fraction | int]) -> None:
        """weights: above 0, one for each source."""
        assert weights and all(weight > 0 for weight in weights), f"weights {weights}"
        scale = math.lcm(*(Fraction(weight).denominator for weight in weights))
        self._parts = [int(weight * scale) for weight in weights]

    def place(self, n: int) -> tuple[int, int]:
        """(source, how many of the n sequences before this one that source has given). n >= 0.

        The first source takes every (total / its part)-th sequence, the second divides what the first leaves, and so on.
        """
        left, total = n, sum(self._parts)
        for source, part in enumerate(self._parts):
            given = left * part // total
            if (left + 1) * part // total > given:
                return source, given
            left, total = left - given, total - part
        raise AssertionError("the last source takes all that is left")
