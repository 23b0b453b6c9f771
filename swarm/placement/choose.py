"""Which span a new node should host.

It takes what the swarm needs most, of the spans that fit its memory and meet the others' spans. Pure.

A route's spans follow each other without gap or overlap (`routing/path.py`), so a span helps only if its edges meet those
of others. In this order:
  1. Blocks without a host: each gap is tiled from its left edge with the longest spans that fit, and the longest tile is
     taken: its edges meet others, and no crumbs are left. Of 12 empty blocks a node of 4 takes 0:4, 4:8 or 8:12, never 3:7.
  2. All are hosted: a span that completes a route, from a block that routes from 0 reach to one from which they reach the end;
     the one with the most of the slowest blocks (tokens a millisecond through all who host it: `members.throughputs`), then of
     the next slowest, and so on. Ties, and swarms whose peers are about equally fast: by the fewest replicas in the same way.
  3. None of those fits: one that brings such a span closer, so that the next newcomer can complete it.
Ties go by the hash of (PeerID, span), so that peers who join at the same moment mostly choose differently.

Where they still collide, the one whose hash of the PeerID is larger chooses anew, counting only those who outrank it
(`outranking`; docs/architecture.md, "Finding each other"). That order must not depend on the spans: with hash(PeerID, span) two
peers who move in the same round can swap places for ever (hypothesis found three that do); with a fixed order the n-th
peer rests after n rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from protocols.errors import ConfigError
from protocols.ids import PeerId, Span
from protocols.words import counted
from swarm.placement.balancing import GAIN
from swarm.placement.members import Member, digest, edges, throughputs

Rank = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a newcomer can take."""

    free_bytes: int
    """Memory for weights and K/V."""

    block_bytes: tuple[int, ...]
    """What each block of the model takes, K/V reserve included."""

    num_blocks: int | None = None
    """At most so many blocks; None = as many as fit."""

    beside_bytes: int = 0
    """What embedding, norm and head take beside an outer span; 0 = they are not to be hosted, or only if something is left."""

    def takes(self, span: Span) -> int:
        """Bytes of the span's blocks, and of what is wanted beside it."""
        is_outer = span.start == 0 or span.stop == len(self.block_bytes)
        return sum(self.block_bytes[span.start : span.stop]) + self.beside_bytes * is_outer

    def fits(self, span: Span) -> bool:
        """Whether memory and the volunteer's wish allow it."""
        return self.takes(span) <= self.free_bytes and (self.num_blocks is None or len(span) <= self.num_blocks)

    def longest_from(self, start: int, limit: int) -> Span | None:
        """The longest span from `start` on, not beyond `limit`, that fits."""
        stop = start
        while stop < limit and self.fits(Span(start, stop + 1)):
            stop += 1
        return Span(start, stop) if stop > start else None

    def longest_to(self, stop: int) -> Span | None:
        """The longest span that ends at `stop` and fits."""
        start = stop
        while start > 0 and self.fits(Span(start - 1, stop)):
            start -= 1
        return Span(start, stop) if stop > start else None

    def blocks_anywhere(self) -> int:
        """Consecutive blocks that fit wherever they are."""
        total, fits = len(self.block_bytes), 0
        while fits < total and all(self.fits(Span(start, start + fits + 1)) for start in range(total - fits)):
            fits += 1
        return fits

    def tiles(self, within: Span) -> list[Span]:
        """`within` cut from the left into longest spans that fit, without the blocks that do not."""
        tiles: list[Span] = []
        start = within.start
        while start < within.stop:
            tile = self.longest_from(start, within.stop)
            start = tile.stop if tile else start + 1
            tiles += [tile] if tile else []
        return tiles


@dataclass(frozen=True, slots=True)
class Choice:
    """A span, and why."""

    span: Span
    reason: str


def choose(peer: PeerId, others: Sequence[Member], capacity: Capacity, current: Span | None = None) -> Choice:
    """The span that `peer` should host next to what the others host (or are about to).

    `current`: what the peer has announced already; it is kept unless another is strictly better, so that a race ends.
    ConfigError if nothing fits: with what the smallest choice takes and what there is.
    """
    total = len(capacity.block_bytes)
    hosted = [member.span for member in others]
    replicas = count_replicas(hosted, total)
    speeds = _speeds(others, total)
    ranks, why = _in_gaps(replicas, capacity), "no node hosts them"
    if not ranks and 0 not in replicas:
        ranks, why = _on_routes(hosted, speeds, replicas, capacity), ""
    if not ranks and 0 not in replicas:
        ranks, why = _towards_routes(hosted, capacity), "with a neighbour they will make another route"
    if not ranks:
        ranks, why = _anywhere(replicas, capacity), "blocks without a host do not fit into memory, these do"
    if not ranks:
        raise ConfigError(_nothing_fits(capacity))
    best = min(ranks, key=lambda span: (ranks[span], digest(f"{peer} {span}")))
    if current is not None and ranks.get(current) == ranks[best]:
        best = current
    why = why or _most_needed(best, speeds, replicas)
    return Choice(best, f"{why}; {_mb(capacity.takes(best))} of {_mb(capacity.free_bytes)} MB, with their K/V reserve")


# --- the four kinds of choices, each span with its rank: the smallest is the best


def _in_gaps(replicas: Sequence[int], capacity: Capacity) -> dict[Span, Rank]:
    return {span: (-len(span),) for gap in gaps_of(replicas) for span in capacity.tiles(gap)}


def _on_routes(hosted: Sequence[Span], speeds: Sequence[float], replicas: Sequence[int], capacity: Capacity) -> dict[Span, Rank]:
    from_start, to_end = edges(hosted, len(replicas))
    spans = [Span(start, stop) for start in from_start for stop in to_end if start < stop]
    return {span: _need(span, speeds) + _need(span, replicas) for span in spans if capacity.fits(span)}


def _towards_routes(hosted: Sequence[Span], capacity: Capacity) -> dict[Span, Rank]:
    total = len(capacity.block_bytes)
    from_start, to_end = edges(hosted, total)
    after = (capacity.longest_from(start, total) for start in from_start)
    before = (capacity.longest_to(stop) for stop in to_end)
    ranks: dict[Span, Rank] = {span: (_distance([*from_start, span.stop], to_end), -len(span)) for span in after if span}
    for span in before:
        if span:
            rank = (_distance(from_start, [*to_end, span.start]), -len(span))
            ranks[span] = min(rank, ranks.get(span, rank))
    return ranks


def _anywhere(replicas: Sequence[int], capacity: Capacity) -> dict[Span, Rank]:
    """Where the blocks that are missing are too large for this node."""
    return {span: _need(span, replicas) for span in capacity.tiles(Span(0, len(replicas)))}


# --- what they are made of


def count_replicas(spans: Iterable[Span], num_blocks: int) -> list[int]:
    """How many of the spans hold each block; what lies beyond the model is ignored."""
    changes = [0] * (num_blocks + 1)
    for span in spans:
        changes[min(span.start, num_blocks)] += 1
        changes[min(span.stop, num_blocks)] -= 1
    return list(accumulate(changes[:-1]))


def gaps_of(replicas: Sequence[int]) -> list[Span]:
    """Every run of blocks without a host."""
    hosted = [True, *map(bool, replicas), True]
    turns = [block for block in range(len(hosted) - 1) if hosted[block] != hosted[block + 1]]
    return [Span(start, stop) for start, stop in zip(turns[::2], turns[1::2], strict=True)]


def _distance(from_start: Iterable[int], to_end: Iterable[int]) -> int:
    """Blocks of the shortest span that would complete another route."""
    ends = list(to_end)
    return min(stop - start for start in from_start for stop in ends if start < stop)


def _speeds(others: Sequence[Member], total: int) -> list[float]:
    """Tokens a millisecond through each block; empty if that decides nothing.

    Peers whose speeds are less than GAIN apart count as equals: so little is measurement noise, and among equals replicas are
    worth more, because then as many nodes again as a route has make every block survive a death.
    """
    known = [member.speed for member in others]
    found = throughputs(others, total) if known and max(known) >= min(known) * GAIN else []
    return found if len(set(found)) > 1 else []


def _need(span: Span, levels: Sequence[float]) -> Rank:
    """The more blocks at the lowest level, the smaller; then at the next level, and so on."""
    held = Counter(levels[span.start : span.stop])
    return tuple(-held[level] for level in sorted(set(levels)))


def _most_needed(span: Span, speeds: Sequence[float], replicas: Sequence[int]) -> str:
    if not speeds:
        return f"they have the fewest nodes among those that fit ({min(replicas)} or more)"
    block = min(range(span.start, span.stop), key=lambda block: (speeds[block], replicas[block]))
    among = "" if speeds[block] == min(speeds) else " of those that fit"
    return f"block {block} is the slowest{among}: {speeds[block]:.2g} tokens/ms from {counted(replicas[block], 'node')}"


def _nothing_fits(capacity: Capacity) -> str:
    return (
        f"no memory for even one of the model's blocks: the smallest takes {_mb(min(capacity.block_bytes))} MB with K/V, "
        f"there are {_mb(capacity.free_bytes)} MB; free some, or try --dtype bfloat16 or another --device"
    )


def _mb(size: int) -> int:
    return -(-size // 1_000_000)


# --- races


def outranking(peer: PeerId, claims: Iterable[Member]) -> list[Member]:
    """Those whose hash is smaller than that of `peer`: they stay, it yields."""
    return [other for other in claims if other.peer != peer and digest(other.peer) < digest(peer)]


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Whether any of the `others` has a block of `span`."""
    return any(other.start < span.stop and span.start < other.stop for other in others)
