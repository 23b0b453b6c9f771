"""The order of a pass: each thing once, without a pattern."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from node.training.data.permutation import order_key, permuted


@given(size=st.integers(1, 300), seed=st.integers(0, 2**64))
def test_each_order_holds_each_thing_once(size: int, seed: int) -> None:
    key = order_key(seed, 0, 0)
    assert sorted(permuted(key, size, place) for place in range(size)) == list(range(size))


@given(size=st.integers(2**30, 2**40), data=st.data())
def test_places_of_a_huge_order_are_distinct_and_in_range(size: int, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, size - 1), min_size=2, max_size=20))
    found = {permuted(order_key(1), size, place) for place in places}
    assert len(found) == len(places) and max(found) < size


def test_every_order_of_four_things_comes_about_equally_often() -> None:
    """9,600 keys, 24 orders: 400 each, standard deviation 20."""
    counts = Counter(tuple(permuted(order_key(seed), 4, place) for place in range(4)) for seed in range(9_600))
    assert set(counts) == set(permutations(range(4)))
    assert max(abs(count - 400) for count in counts.values()) < 100


def test_neighbours_do_not_stay_neighbours() -> None:
    found = [permuted(order_key(3), 4_000, place) for place in range(4_000)]
    steps = Counter((after - before) % 4_000 for before, after in pairwise(found))
    assert max(steps.values()) < 12, "differences of neighbours repeat: the order has a pattern"


def test_the_order_is_the_same_on_every_machine_for_ever() -> None:
    """Written down once: another order would make two trainers of one run disagree."""
    assert [permuted(order_key(0, 1, 2), 10, place) for place in range(10)] == [4, 7, 1, 0, 5, 9, 3, 6, 2, 8]
