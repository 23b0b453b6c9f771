"""The members of a swarm, as placement sees them.

A member claims blocks, has a speed, and may hold a number of blocks elsewhere. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from protocols.ids import PeerId, Span
from protocols.units import ENDS, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One peer's claim: the blocks that it hosts, or is about to (of a peer that moves: those that it moves to)."""

    peer: PeerId
    span: Span
    capacity_blocks: int = 0
    """Consecutive blocks that it could host anywhere; 0 = it stays where it is."""
    speed: float = 1.0
    """Blocks that it computes a millisecond, for one token."""
    beside: frozenset[Unit] = frozenset()
    """Units that it hosts beside its span; embedding and head count if the span is an outer one."""

    @property
    def throughput(self) -> float:
        """What it adds to each of its blocks: tokens a millisecond."""
        return self.speed / len(self.span)

    def at(self, span: Span) -> Member:
        """The same member elsewhere. It is not known whether other units will fit there, so it counts as without them."""
        return self if span == self.span else replace(self, span=span, beside=frozenset())


def digest(text: str) -> bytes:
    """A fixed order among peers that no peer can choose freely."""
    return hashlib.sha256(text.encode()).digest()


def edges(spans: Iterable[Span], num_blocks: int) -> tuple[set[int], set[int]]:
    """(blocks that chains of spans reach from 0, blocks from which chains reach the end). A route exists iff num_blocks is in the first."""
    known = sorted(span for span in set(spans) if span.stop <= num_blocks)
    from_start, to_end = {0}, {num_blocks}
    for span in known:
        if span.start in from_start:
            from_start.add(span.stop)
    for span in sorted(known, key=lambda span: -span.stop):
        if span.stop in to_end:
            to_end.add(span.start)
    return from_start, to_end


def is_routable(members: Iterable[Member], num_blocks: int) -> bool:
    """Whether spans meet edge to edge from the first block to the last."""
    return num_blocks in edges((member.span for member in members), num_blocks)[0]


def throughputs(members: Sequence[Member], num_blocks: int) -> list[float]:
    """Tokens a millisecond through each block, counting those who are on some complete route. The least of them bounds the swarm.

    The bottleneck model of Petals (Borzunov et al. 2023, section 3.2), with spans that must meet edge to edge.
    """
    from_start, to_end = edges((member.span for member in members), num_blocks)
    steps = [0.0] * (num_blocks + 1)
    if num_blocks not in from_start:
        return steps[:-1]
    for member in members:
        if member.span.start in from_start and member.span.stop in to_end:
            steps[member.span.start] += member.throughput
            steps[member.span.stop] -= member.throughput
    found, running = [], 0.0
    for step in steps[:-1]:
        running += step
        found.append(max(0.0, round(running, 12)))
    return found


def ends_hosts(members: Iterable[Member], num_blocks: int) -> tuple[list[Member], list[Member]]:
    """(hosts of embedding and head with block 0, those with the last block): where routes of thin clients begin and stop."""
    hosts = [member for member in members if member.beside >= ENDS]
    return [one for one in hosts if one.span.start == 0], [one for one in hosts if one.span.stop == num_blocks]


def keeps_ends(before: Sequence[Member], after: Sequence[Member], num_blocks: int) -> bool:
    """Whether an edge of the model that had ends has them still, and a route from ends to ends that was there is there still."""
    return all(new >= old for new, old in zip(_thin(after, num_blocks), _thin(before, num_blocks), strict=True))


def _thin(members: Sequence[Member], num_blocks: int) -> tuple[bool, bool, bool]:
    first, last = ends_hosts(members, num_blocks)
    inner = [one for one in members if one.beside >= ENDS or (one.span.start > 0 and one.span.stop < num_blocks)]
    return bool(first), bool(last), bool(first and last) and is_routable(inner, num_blocks)


def num_covered(members: Iterable[Member], num_blocks: int) -> int:
    """Number of blocks that at least one member claims."""
    return len({block for member in members for block in range(member.span.start, min(member.span.stop, num_blocks))})
