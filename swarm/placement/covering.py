"""Moves that close gaps between hosted blocks.

There is a gap if blocks have no host, or if spans do not meet. As few members move as possible, and never at the cost of another gap. Pure.

  1. The *backbone*: of the spans that are there, those without overlap that together hold the most blocks. Its members stay.
  2. Each hole between them is filled by *spare* members (whose blocks others hold, too): the one who is missed least and can fill
     it alone; else the one with the largest capacity. Of equals, the last host of embedding and head at an edge goes last.
  3. No spares left: the shortest stretch of the backbone whose unused capacity fills its holes is tiled anew; its members shift and grow.
  4. No such stretch: all members that can move are tiled from the left. This holds as many blocks as the capacities allow.

Step 3 finds a stretch whenever all capacities together hold the model, since by then each of them is in the backbone. So, if no member
is pinned, one plan always reaches min(num_blocks, sum of capacities), and a plan made from its own result is empty. Between members that
stay where they are (`--blocks`) step 4 is first fit, largest first: filling fixed holes with whole capacities is bin packing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from protocols.ids import Span
from protocols.units import ENDS
from swarm.placement.choose import count_replicas
from swarm.placement.members import Member, digest, ends_hosts, is_routable, num_covered


def cover(members: Sequence[Member], num_blocks: int) -> list[Member]:
    """All members; those that should move have their new spans. The same list if no plan is better."""
    members = sorted(members, key=lambda member: digest(member.peer))
    if is_routable(members, num_blocks):
        return members
    backbone, spare = _backbone(members, num_blocks)
    backbone, spare = _fill(backbone, spare, count_replicas((member.span for member in members), num_blocks), num_blocks)
    while (stretch := _stretch(backbone, num_blocks)) is not None:  # each that is tiled anew has a hole less
        backbone = _tile_anew(backbone, stretch)
    repaired = [*backbone, *spare]
    rebuilt = _rebuild(members, num_blocks)
    # a plan that is routable but holds no more blocks is no reason to move all members
    found = max((members, repaired, rebuilt), key=lambda plan: (num_covered(plan, num_blocks), is_routable(plan, num_blocks)))
    return sorted(found, key=lambda member: digest(member.peer))


# --- 1. the backbone


def _backbone(members: Sequence[Member], num_blocks: int) -> tuple[list[Member], list[Member]]:
    """(disjoint members that hold the most blocks, with as few members as that takes; the others who can move). Pinned ones first."""
    ending: dict[int, list[Member]] = {}
    for member in _one_per_span(members):
        if member.span.stop <= num_blocks:
            ending.setdefault(member.span.stop, []).append(member)
    best: list[tuple[int, int]] = [(0, 0)]  # (blocks held, -members) up to each block
    taken: list[Member | None] = [None]
    for stop in range(1, num_blocks + 1):
        score, last = best[stop - 1], None
        for member in ending.get(stop, []):
            blocks, fewer = best[member.span.start]
            with_it = (blocks + len(member.span), fewer - (0 if member.capacity_blocks == 0 else 1))
            if with_it > score:
                score, last = with_it, member
        best.append(score)
        taken.append(last)
    chain: list[Member] = []
    block = num_blocks
    while block > 0:
        found = taken[block]
        chain += [found] if found else []
        block = found.span.start if found else block - 1
    chosen = {member.peer for member in chain}
    return chain[::-1], [member for member in members if member.peer not in chosen and member.capacity_blocks]


def _one_per_span(members: Sequence[Member]) -> list[Member]:
    """Of members with the same span the one that stays anyway, else the one with the smallest capacity: larger ones are of use elsewhere.

    Of equals the one with embedding and head.
    """
    found: dict[Span, Member] = {}
    for member in members:
        other = found.get(member.span)
        if other is None or _use_elsewhere(other) > _use_elsewhere(member):
            found[member.span] = member
    return [found[span] for span in sorted(found)]


def _use_elsewhere(member: Member) -> tuple[int, bool, str]:
    return member.capacity_blocks, not member.beside >= ENDS, member.peer


def _holes(backbone: Sequence[Member], num_blocks: int) -> list[Span]:
    """What lies between the members, which are disjoint and in order."""
    edges = [0, *(edge for member in backbone for edge in (member.span.start, member.span.stop)), num_blocks]
    return [Span(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


# --- 2. spare members


def _fill(
    backbone: list[Member], spare: list[Member], counts: Sequence[int], num_blocks: int
) -> tuple[list[Member], list[Member]]:
    """Put spare members into the holes until one of both is used up."""
    counted = Counter(dict(enumerate(counts)))
    while spare and (holes := _holes(backbone, num_blocks)):
        hole = max(holes, key=lambda hole: (len(hole), -hole.start))
        alone = [member for member in spare if member.capacity_blocks >= len(hole)]
        last_ends = [hosts[0].peer for hosts in ends_hosts([*backbone, *spare], num_blocks) if len(hosts) == 1]
        least_missed = min(
            alone or [member for member in spare if member.capacity_blocks == max(one.capacity_blocks for one in spare)],
            key=lambda member: (-_fewest(counted, member.span), member.peer in last_ends, digest(member.peer)),
        )
        counted.subtract(_blocks(least_missed.span))
        moved = least_missed.at(Span(hole.start, min(hole.stop, hole.start + least_missed.capacity_blocks)))
        spare = [member for member in spare if member is not least_missed]
        backbone = sorted([*backbone, moved], key=lambda member: member.span)
    return backbone, spare


def _fewest(counted: Counter[int], span: Span) -> int:
    return min((counted[block] for block in _blocks(span)), default=0)


def _blocks(span: Span) -> range:
    return range(span.start, span.stop)


# --- 3. stretches of the backbone


def _stretch(backbone: Sequence[Member], num_blocks: int) -> tuple[int, int, Span] | None:
    """(first, last + 1, blocks) of the fewest neighbouring members that can move and hold the holes beside and between them."""
    found: list[tuple[int, int, int, Span]] = []
    for first in range(len(backbone)):
        start = backbone[first - 1].span.stop if first else 0
        capacity = 0
        for last in range(first, len(backbone)):
            member = backbone[last]
            if not member.capacity_blocks:
                break
            capacity += member.capacity_blocks
            stop = backbone[last + 1].span.start if last + 1 < len(backbone) else num_blocks
            held = sum(len(one.span) for one in backbone[first : last + 1])
            if capacity >= stop - start > held:
                found.append((last - first, first, last + 1, Span(start, stop)))
                break
    if not found:
        return None
    _size, first, last, span = min(found)
    return first, last, span


def _tile_anew(backbone: list[Member], stretch: tuple[int, int, Span]) -> list[Member]:
    """The stretch's members in their order, without a hole; who stands well stays, and growing is left to those who have to move anyway."""
    first, last, span = stretch
    tiled: list[Member] = []
    start = span.start
    for index in range(first, last):
        rest = sum(member.capacity_blocks for member in backbone[index + 1 : last])
        needed = max(1, span.stop - start - rest)  # what the others cannot take
        wanted = len(backbone[index].span) if backbone[index].span.start == start else backbone[index].span.stop - start
        left = span.stop - start - (last - index - 1)  # a block for each of the others
        length = min(max(needed, wanted), backbone[index].capacity_blocks, left)
        if index == last - 1:
            length = span.stop - start
        tiled.append(backbone[index].at(Span(start, start + length)))
        start += length
    return [*backbone[:first], *tiled, *backbone[last:]]


# --- 4. all members


def _rebuild(members: Sequence[Member], num_blocks: int) -> list[Member]:
    """All who can move, tiled into the holes between the pinned ones; those of one hole keep their order."""
    pinned = [member for member in members if not member.capacity_blocks]
    movers = [member for member in members if member.capacity_blocks]
    fixed = _backbone(pinned, num_blocks)[0]
    placed: list[Member] = []
    for hole in sorted(_holes(fixed, num_blocks), key=lambda hole: (-len(hole), hole)):
        crew, length = [], 0
        movers.sort(key=lambda member: (-member.capacity_blocks, digest(member.peer)))
        while movers and length < len(hole):
            fits = [member for member in movers if member.capacity_blocks <= len(hole) - length]
            member = fits[0] if fits else movers[-1]
            movers.remove(member)
            crew.append(member)
            length += member.capacity_blocks
        start = hole.start
        for member in sorted(crew, key=lambda member: (member.span, digest(member.peer))):
            stop = min(hole.stop, start + member.capacity_blocks)
            placed += [member.at(Span(start, stop))] if stop > start else [member]
            start = stop
    return [*pinned, *placed, *movers]
