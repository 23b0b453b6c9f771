"""The cheapest path through the blocks of a model.

Dijkstra over (block, peer). Pure: values in, values out.

Cost of a path, in milliseconds a decode step takes: each hop's compute and queue, and the one-way way between neighbours, from the
client to the first hop and from the last hop back. A hop that already holds the session's K/V costs nothing extra; a new one pays
for the replay. Source of the idea: Petals' sequence manager (shortest path over (server, span) with a penalty for missing cache).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId, Span
from protocols.units import Unit

REPLAY_MS = 1_000.0
"""Cost of a hop that has to be brought up to date, where others hold the session already."""

DOUBT_MS = 60_000.0
"""Cost of a hop for each dispute that it is suspected of: more than any replay, so that it is passed by if there is a way without it."""

SCARCE_TOKENS = 2_048
"""Below this many free tokens a hop becomes dearer, linearly, up to SCARCE_MS."""
SCARCE_MS = 200.0

MAX_REPLICAS = 16
"""Replicas of one span that are looked at: the cheapest, with their way from the client. Records cost nothing to make up, and every
one of thousands with every other takes minutes."""

Way = Callable[[PeerId | None, PeerId | None], float]
"""One-way milliseconds between two peers; None is the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A peer that could run `span`, and what one decode step costs there."""

    peer: PeerId
    span: Span
    step_ms: float
    free_tokens: int
    beside: frozenset[Unit] = frozenset()
    """What it hosts beside the span, of the same weights and in the same precision."""
    is_holding: bool = False
    """Holds this session's K/V already."""
    doubts: int = 0
    """Disputes that it is suspected of."""


def cost_ms(candidate: Candidate, any_holding: bool) -> float:
    """Milliseconds that a step spends at this hop, with penalties for scarce memory and for a replay."""
    scarce = SCARCE_MS * max(0.0, 1 - candidate.free_tokens / SCARCE_TOKENS)
    cost = candidate.step_ms + DOUBT_MS * candidate.doubts
    if candidate.is_holding:
        return cost
    return cost + scarce + (REPLAY_MS if any_holding else 0.0)


def parts(span: Span, blocks: Span, edges: Collection[int], kept: Collection[int]) -> list[Span]:
    """What a node that hosts `span` could run of `blocks`: from any of `edges` to its own end, or to one of `kept`.

    edges: where spans of others meet. Running on to one's own end reaches the farthest, so a route is found where there is one.
    kept: edges of the hops that hold a session already, so that those need not be replayed.
    """
    first, last = max(span.start, blocks.start), min(span.stop, blocks.stop)
    starts = sorted({first, *(edge for edge in edges if first < edge < last)})
    stops = sorted({last, *(edge for edge in kept if first < edge < last)})
    return [Span(start, stop) for start in starts for stop in stops if start < stop]


def can_take_part(span: Span, beside: Collection[Unit], num_blocks: int, needs: frozenset[Unit]) -> bool:
    """Is there a place for it in a route? needs: what the first and the last hop must host beside their blocks."""
    return span.stop <= num_blocks and (needs.issubset(beside) or (span.start > 0 and span.stop < num_blocks))


def best(
    candidates: Sequence[Candidate], num_blocks: int, way_ms: Way, needs: frozenset[Unit] = frozenset(), start: int = 0
) -> list[Candidate] | None:
    """The cheapest candidates whose spans cover [start, num_blocks) without gap or overlap; None where there are none.

    needs: units that the first and the last of them must host too.

    Ties go to fewer hops, then to the smaller PeerIDs, so that equal inputs give equal routes. A peer takes part once; the search is
    exact where each offers one span (as our nodes do), and may miss a path where one offers several.
    """
    any_holding = any(candidate.is_holding for candidate in candidates)
    candidates = [c for c in candidates if can_take_part(c.span, c.beside, num_blocks, needs)]
    starting: dict[int, list[Candidate]] = {}
    for candidate in _cheapest(candidates, way_ms, any_holding):
        starting.setdefault(candidate.span.start, []).append(candidate)
    frontier: list[tuple[float, int, int, int, list[Candidate]]] = [(0.0, 0, 0, start, [])]
    finished: set[tuple[int, PeerId | None]] = set()
    serial = 0
    while frontier:
        cost, hops, _, block, path = heapq.heappop(frontier)
        here = path[-1].peer if path else None
        if block == num_blocks + 1:
            return path
        if (block, here) in finished:
            continue
        finished.add((block, here))
        for step, position, longer in _steps(path, block, here, starting, num_blocks, way_ms, any_holding):
            serial += 1
            heapq.heappush(frontier, (cost + step, hops + 1, serial, position, longer))
    return None


def _cheapest(candidates: Sequence[Candidate], way_ms: Way, any_holding: bool) -> list[Candidate]:
    """At most MAX_REPLICAS of each span, and the peers that hold the session; in the order of spans and PeerIDs."""
    replicas: dict[Span, list[Candidate]] = {}
    for candidate in candidates:
        replicas.setdefault(candidate.span, []).append(candidate)
    chosen: list[Candidate] = []
    for group in replicas.values():
        if len(group) > MAX_REPLICAS:
            group.sort(key=lambda c: (not c.is_holding, way_ms(None, c.peer) + cost_ms(c, any_holding), c.peer))
            del group[MAX_REPLICAS:]
        chosen += group
    return sorted(chosen, key=lambda c: (c.span, c.peer))


def _steps(
    path: list[Candidate],
    block: int,
    here: PeerId | None,
    starting: dict[int, list[Candidate]],
    num_blocks: int,
    way_ms: Way,
    any_holding: bool,
) -> list[tuple[float, int, list[Candidate]]]:
    """What may follow: a candidate that starts here, or, at the end, the way back to the client (block num_blocks + 1)."""
    if block == num_blocks:
        return [(way_ms(here, None), num_blocks + 1, path)]
    used = {candidate.peer for candidate in path}
    return [
        (way_ms(here, c.peer) + cost_ms(c, any_holding), c.span.stop, [*path, c])
        for c in starting.get(block, [])
        if c.peer not in used
    ]


def unhosted(spans: Collection[Span], blocks: Span) -> list[Span]:
    """Those of `blocks` that no candidate hosts."""
    start, gaps = blocks.start, list[Span]()
    for span in sorted(spans):
        if start < min(span.start, blocks.stop):
            gaps.append(Span(start, min(span.start, blocks.stop)))
        start = max(start, span.stop)
    return [*gaps, Span(start, blocks.stop)] if start < blocks.stop else gaps


def missing(spans: Collection[Span], num_blocks: int) -> list[Span]:
    """The blocks that no path can cross, as spans: those that no candidate hosts, else those where the candidates do not join."""
    spans = [span for span in spans if span.stop <= num_blocks]
    if not (gaps := unhosted(spans, Span(0, num_blocks))) and spans:
        reachable = {0}
        for span in sorted(spans):
            if span.start in reachable:
                reachable.add(span.stop)
        if num_blocks not in reachable:
            gaps = [Span(max(reachable), num_blocks)]
    return gaps
