"""The cheapest path, against all paths there are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerId, Span
from protocols.units import ENDS
from swarm.routing import path
from swarm.routing.path import Candidate

BLOCKS = 5


def way_ms(a: PeerId | None, b: PeerId | None) -> float:
    """Whole milliseconds, so that equal sums are equal."""
    return float(sum(map(ord, (a or "") + (b or ""))) * 7 % 23)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """One span a peer, as our nodes have."""
    found = []
    for number in range(draw(st.integers(0, 7))):
        start = draw(st.integers(0, BLOCKS - 1))
        found.append(
            Candidate(
                peer=PeerId(f"p{number}"),
                span=Span(start, draw(st.integers(start + 1, BLOCKS + 1))),
                step_ms=float(draw(st.integers(0, 20))),
                free_tokens=draw(st.sampled_from([0, path.SCARCE_TOKENS // 2, path.SCARCE_TOKENS, 10**6])),
                is_holding=draw(st.booleans()),
                beside=draw(st.sampled_from([ENDS, frozenset()])),
            )
        )
    return found


def all_paths(found: Sequence[Candidate], block: int = 0) -> list[list[Candidate]]:
    if block == BLOCKS:
        return [[]]
    return [
        [candidate, *rest]
        for candidate in found
        if candidate.span.start == block and candidate.span.stop <= BLOCKS
        for rest in all_paths([other for other in found if other is not candidate], candidate.span.stop)
    ]


def total_ms(chosen: Sequence[Candidate], any_holding: bool) -> float:
    peers = [None, *(candidate.peer for candidate in chosen), None]
    ways = sum(way_ms(a, b) for a, b in pairwise(peers))
    return ways + sum(path.cost_ms(candidate, any_holding) for candidate in chosen)


@given(candidates(), st.booleans())
def test_no_path_is_cheaper_and_none_of_equal_cost_has_fewer_hops(found: list[Candidate], thin: bool) -> None:
    """A thin client's path is the cheapest of those whose first and last hop host embedding and head."""
    chosen, others = path.best(found, BLOCKS, way_ms, ENDS if thin else frozenset()), all_paths(found)
    if thin:
        others = [other for other in others if other[0].beside and other[-1].beside]
    any_holding = any(candidate.is_holding for candidate in found)
    if not others:
        assert chosen is None
    else:
        assert chosen in others
        cheapest = min((total_ms(other, any_holding), len(other)) for other in others)
        assert (total_ms(chosen, any_holding), len(chosen)) == cheapest


@given(candidates(), st.randoms(use_true_random=False))
def test_equal_inputs_give_equal_routes_in_any_order(found: list[Candidate], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert path.best(shuffled, BLOCKS, way_ms) == path.best(found, BLOCKS, way_ms)


def test_ties_go_to_fewer_hops_then_to_smaller_names() -> None:
    def free(name: str, start: int, stop: int) -> Candidate:
        return Candidate(peer=PeerId(name), span=Span(start, stop), step_ms=0, free_tokens=10**6)

    halves = [free("b", 0, 2), free("a", 0, 2), free("d", 2, 5), free("c", 2, 5)]
    assert [c.peer for c in path.best(halves, BLOCKS, lambda a, b: 0) or []] == ["a", "c"]
    assert [c.peer for c in path.best([*halves, free("z", 0, 5)], BLOCKS, lambda a, b: 0) or []] == ["z"]


@given(candidates(), st.data())
def test_survivors_are_kept_where_any_path_keeps_them(found: list[Candidate], data: st.DataObject) -> None:
    """Replays cost more than any detour between these peers: the route has as few new hops as possible."""
    found = [replace(candidate, free_tokens=10**6, is_holding=data.draw(st.booleans())) for candidate in found]
    chosen, others = path.best(found, BLOCKS, way_ms), all_paths(found)
    if chosen is not None and any(candidate.is_holding for candidate in found):
        assert sum(not c.is_holding for c in chosen) == min(sum(not c.is_holding for c in other) for other in others)


def test_scarce_memory_is_avoided_but_used_where_nothing_else_is() -> None:
    full = Candidate(peer=PeerId("a"), span=Span(0, BLOCKS), step_ms=1, free_tokens=0)
    free = Candidate(peer=PeerId("b"), span=Span(0, BLOCKS), step_ms=100, free_tokens=path.SCARCE_TOKENS)
    assert path.best([full, free], BLOCKS, way_ms) == [free]
    assert path.best([full], BLOCKS, way_ms) == [full]


@given(candidates())
def test_what_is_missing_is_said_exactly_where_no_path_is(found: list[Candidate]) -> None:
    gaps = path.missing([candidate.span for candidate in found], BLOCKS)
    assert bool(gaps) == (not all_paths(found))
    assert all(a.stop < b.start for a, b in pairwise(gaps))
    helped = [*found, *(Candidate(peer=PeerId(f"new{gap}"), span=gap, step_ms=1, free_tokens=1) for gap in gaps)]
    hosted = {
        block
        for candidate in helped
        if candidate.span.stop <= BLOCKS
        for block in range(candidate.span.start, candidate.span.stop)
    }
    assert hosted == set(range(BLOCKS))


def test_thousands_of_made_up_records_neither_take_minutes_nor_push_a_session_off_its_hops() -> None:
    crowd = [
        Candidate(peer=PeerId(f"p{number:05}"), span=Span(start, start + 1), step_ms=1e6 * (start == 7), free_tokens=10**6)
        for number, start in enumerate(list(range(8)) * 500)
    ]  # the last ones are dear, so that every way to them is looked at
    mine = Candidate(peer=PeerId("mine"), span=Span(3, 4), step_ms=500.0, free_tokens=0, is_holding=True)
    started = time.process_time()
    chosen = path.best([*crowd, mine], 8, way_ms)
    assert time.process_time() - started < 2.0  # 0.02 s; with all against all, 19 s
    assert chosen is not None and len(chosen) == 8 and chosen[3] is mine


@given(candidates(), st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS))
def test_parts_lead_through_any_blocks_that_are_all_hosted(found: list[Candidate], start: int, length: int) -> None:
    blocks = Span(start, min(start + length, BLOCKS))
    spans = [candidate.span for candidate in found]
    edges = {edge for span in spans for edge in (span.start, span.stop)}
    parts = [replace(candidate, span=part) for candidate in found for part in path.parts(candidate.span, blocks, edges, ())]
    chosen = path.best(parts, blocks.stop, way_ms, start=blocks.start)
    assert (chosen is None) == bool(path.unhosted(spans, blocks))
    if chosen is not None:
        assert [block for candidate in chosen for block in range(candidate.span.start, candidate.span.stop)] == list(
            range(blocks.start, blocks.stop)
        )
        hosted = {candidate.peer: candidate.span for candidate in found}
        assert all(candidate.span.is_within(hosted[candidate.peer]) for candidate in chosen)
