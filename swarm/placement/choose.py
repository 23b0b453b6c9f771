"""Which span a newcomer should host: the blocks with the fewest replicas that fit its memory. Pure.

A window of consecutive blocks is judged by three things, in this order:
  1. need: how many blocks without a replica it holds, then how many with one, and so on;
  2. neatness: how many more windows of its length the neediest blocks would then still take (so that a newcomer
     leaves no crumbs: of 12 empty blocks a node of 4 takes 0:4, 4:8 or 8:12, never 3:7);
  3. the hash of (PeerID, span), so that two peers who join at the same moment choose differently.
Where they still collide, the one whose hash of the PeerID is larger chooses anew, counting only those who outrank it
(`outranking`, docs/architecture.md, "Placement race"). The order must not depend on the spans: with hash(PeerID, span)
two peers who move in the same round can swap places for ever (hypothesis found three peers that do), with a fixed order
the n-th peer rests after n rounds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocols.errors import ConfigError
from protocols.ids import PeerId, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a newcomer can take."""

    free_bytes: int
    """Memory for weights and K/V."""

    block_bytes: tuple[int, ...]
    """What each block of the model takes, K/V reserve included."""

    num_blocks: int | None = None
    """Exactly so many blocks, where the volunteer said so; None = as many as fit."""

    def windows(self) -> list[Span]:
        """Every longest span that fits; empty where not even the smallest block does."""
        if self.num_blocks is not None:
            last = len(self.block_bytes) - self.num_blocks
            spans = [Span(start, start + self.num_blocks) for start in range(last + 1)]
            return [span for span in spans if self.takes(span) <= self.free_bytes]
        spans = [Span(start, stop) for start in range(len(self.block_bytes)) if (stop := self._reach(start)) > start]
        return [span for index, span in enumerate(spans) if index == 0 or span.stop > spans[index - 1].stop]

    def takes(self, span: Span) -> int:
        """Bytes of the span's blocks."""
        return sum(self.block_bytes[span.start : span.stop])

    def _reach(self, start: int) -> int:
        stop, left = start, self.free_bytes
        while stop < len(self.block_bytes) and (left := left - self.block_bytes[stop]) >= 0:
            stop += 1
        return stop


@dataclass(frozen=True, slots=True)
class Choice:
    """A span, and why."""

    span: Span
    reason: str


def count_replicas(spans: Iterable[Span], num_blocks: int) -> list[int]:
    """How many of the spans hold each block; what lies beyond the model is ignored."""
    counts = [0] * num_blocks
    for span in spans:
        for block in range(span.start, min(span.stop, num_blocks)):
            counts[block] += 1
    return counts


def choose(peer: PeerId, replicas: Sequence[int], room: Room, current: Span | None = None) -> Choice:
    """The span that `peer` should host, given the replicas that the others hold of each block.

    `current`: what the peer has announced already; it is kept unless another is strictly better, so that a race ends.
    ConfigError where nothing fits: with what the smallest choice takes and what there is.
    """
    windows = room.windows()
    if not windows:
        raise ConfigError(_nothing_fits(room))
    best = min(windows, key=lambda span: (*_rank(span, replicas), _digest(f"{peer} {span}")))
    if current is not None and current in windows and _rank(current, replicas) <= _rank(best, replicas):
        best = current
    return Choice(best, _reason(best, replicas, room))


def outranking(peer: PeerId, claims: Iterable[tuple[PeerId, Span]]) -> list[Span]:
    """The spans claimed by peers whose hash is smaller than that of `peer`: they stay, it yields."""
    return [span for other, span in claims if other != peer and _digest(other) < _digest(peer)]


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Whether any of the `others` has a block of `span`."""
    return any(other.start < span.stop and span.start < other.stop for other in others)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _rank(span: Span, replicas: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Smaller is better: (minus the number of blocks at each level of replicas, windows that would be left to fill)."""
    held = Counter(replicas[span.start : span.stop])
    levels = tuple(-held[level] for level in range(min(replicas), max(replicas) + 1))
    return levels, _windows_left(span, replicas)


def _windows_left(span: Span, replicas: Sequence[int]) -> int:
    """How many spans of this length the neediest blocks outside of it still take."""
    least, left, run = min(replicas), 0, 0
    for block in range(len(replicas) + 1):
        if block < len(replicas) and replicas[block] == least and block not in span:
            run += 1
        else:
            left, run = left - -run // len(span), 0
    return left


def _reason(span: Span, replicas: Sequence[int], room: Room) -> str:
    held = replicas[span.start : span.stop]
    need = sum(count == 0 for count in held)
    why = f"nobody hosts {need} of its {len(span)} blocks" if need else f"it has the fewest replicas ({min(held)} to {max(held)})"
    return f"{why}; it takes {_mb(room.takes(span))} of {_mb(room.free_bytes)} MB, with its K/V reserve"


def _nothing_fits(room: Room) -> str:
    total = len(room.block_bytes)
    if room.num_blocks is not None and room.num_blocks > total:
        return f"--num-blocks {room.num_blocks} is more than the model has: {total} blocks; give at most {total}"
    wanted = room.num_blocks or 1
    least = min(room.takes(Span(start, start + wanted)) for start in range(total - wanted + 1))
    return (
        f"no memory for {wanted} of the model's blocks: they take {_mb(least)} MB with K/V, there are {_mb(room.free_bytes)} MB; "
        "free some, or try --num-blocks 1, --dtype bfloat16 or another --device"
    )


def _mb(size: int) -> int:
    return -(-size // 1_000_000)
