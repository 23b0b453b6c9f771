"""Routes of micro-batches: whole, around busy stages, to holders first."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerId, Span
from swarm.training.route_choice import StageLoad, choose, uncovered

NUM_BLOCKS = 8


def stage(name: str, start: int, stop: int, *, block_ms: float = 1.0, waiting: int = 0) -> StageLoad:
    return StageLoad(peer=PeerId(name), span=Span(start, stop), block_ms=block_ms, num_waiting=waiting)


spans = st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, NUM_BLOCKS)).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(spans, max_size=8), st.integers(0, 1000))
def test_a_route_covers_every_block_once_and_is_found_if_there_is_one(given_spans: list[tuple[int, int]], seed: int) -> None:
    stages = [stage(f"p{number}", *span) for number, span in enumerate(given_spans)]
    route = choose(stages, NUM_BLOCKS, random.Random(seed))
    if route is None:
        assert not _is_reachable(given_spans)
        return
    assert [block for leg in route for block in range(leg.span.start, leg.span.stop)] == list(range(NUM_BLOCKS))
    by_name = {one.peer: one.span for one in stages}
    assert all(by_name[leg.peer].start <= leg.span.start and leg.span.stop == by_name[leg.peer].stop for leg in route)


def _is_reachable(given_spans: list[tuple[int, int]]) -> bool:
    """By brute force: a stage runs from any block of its span to the span's end."""
    reached = {0}
    for _ in given_spans:
        reached |= {stop for start, stop in given_spans for block in reached if start <= block < stop}
    return NUM_BLOCKS in reached


def test_a_busy_replica_gets_less_than_an_idle_one() -> None:
    stages = [stage("a", 0, 8, waiting=4), stage("b", 0, 8)]
    chosen = Counter(choose(stages, 8, random.Random(seed))[0].peer for seed in range(50))  # type: ignore[index]
    assert chosen == {PeerId("b"): 50}


def test_a_redo_asks_the_stage_that_holds_the_micro_batch_however_busy_it_is() -> None:
    stages = [stage("a", 0, 4), stage("b", 4, 8, waiting=9), stage("c", 4, 8)]
    route = choose(stages, 8, random.Random(0), held_by={PeerId("b")})
    assert route is not None and [leg.peer for leg in route] == ["a", "b"]


def test_a_stage_without_a_way_to_the_end_is_avoided() -> None:
    """`x` reaches farther at once, but nothing follows it."""
    stages = [stage("x", 0, 6), stage("a", 0, 4), stage("b", 4, 8)]
    for seed in range(20):
        route = choose(stages, 8, random.Random(seed))
        assert route is not None and route[-1].span.stop == 8


def test_uncovered_blocks_are_named() -> None:
    assert uncovered([stage("a", 0, 3), stage("b", 5, 8)], 8) == [3, 4]
