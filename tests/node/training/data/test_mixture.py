"""Weighted sources: exact shares at each moment, as a pure function."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from node.training.data.mixture import Mixture

WEIGHTS = st.lists(st.fractions(Fraction(1, 1000), 1000, max_denominator=1000), min_size=1, max_size=6)


@given(weights=WEIGHTS, start=st.integers(0, 10**9))
def test_counts_follow_the_weights_at_each_moment(weights: list[Fraction], start: int) -> None:
    mixture = Mixture(weights)
    for n in range(start, start + 20):
        source, given_before = mixture.place(n)
        assert abs(given_before - n * weights[source] / sum(weights)) < len(weights)


@given(weights=WEIGHTS)
def test_seeking_agrees_with_counting(weights: list[Fraction]) -> None:
    mixture, counts = Mixture(weights), [0] * len(weights)
    for n in range(100):
        source, given_before = mixture.place(n)
        assert given_before == counts[source]
        counts[source] += 1


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_with_their_sizes_as_weights_sources_end_together(sizes: list[int]) -> None:
    drawn = [Mixture(sizes).place(n) for n in range(sum(sizes))]
    assert sorted(drawn) == [(source, number) for source, size in enumerate(sizes) for number in range(size)]
