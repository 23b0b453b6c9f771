"""Moves that make a fully hosted swarm faster.

They are made for a gain of at least GAIN, and never at the cost of a route. Pure.

The last member that hosts embedding and head at an edge of the model stays, since thin clients have no route without it.

Blocks below GAIN times the bottleneck are *slow*. One after the other, the member is moved to the span that takes most of them out
of that, who is missed least where it is: what it leaves must stay above. Only where no slow block is left in the end do they move;
then the bottleneck has gained the margin, and the next round of the same begins.

Nothing oscillates: each plan that is carried out multiplies the bottleneck by at least GAIN, and it is bounded by the sum of speeds.
Source of the rule: Borzunov et al. 2023 (Petals), section 3.2: a server moves if the simulated swarm gains by a margin. There each
server simulates the others' answers; here all compute the same plan for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.ids import Span
from protocols.units import Unit
from swarm.placement.members import Member, digest, edges, is_routable, keeps_ends, throughputs

GAIN = 1.2
"""Least factor by which the bottleneck must grow."""

MAX_MOVES = 64
"""Of one plan; a gain that takes more is left alone."""

Move = tuple[int, Member]
"""(place in the list, the member with its new span)"""


def balance(members: Sequence[Member], num_blocks: int) -> list[Member]:
    """All members; those that should move have their new spans. The same list if no move gains enough."""
    found, moved = list(members), set[int]()
    while (better := _gain(found, moved, num_blocks)) is not None:
        found, moved = better
    return found


def _gain(members: list[Member], moved: set[int], num_blocks: int) -> tuple[list[Member], set[int]] | None:
    """The swarm after moves that gain the margin, and who has moved so far; None if there are none."""
    found, moved = list(members), set(moved)
    goal = min(throughputs(found, num_blocks)) * GAIN
    if goal == 0:
        return None
    while min(now := throughputs(found, num_blocks)) < goal:
        move = _best(found, now, goal, moved, num_blocks) if len(moved) < MAX_MOVES else None
        if move is None:
            return None
        found[move[0]] = move[1]
        moved.add(move[0])
    return found, moved


def _best(members: list[Member], now: Sequence[float], goal: float, moved: set[int], num_blocks: int) -> Move | None:
    """The move after which the fewest blocks are slow, of those that leave nothing slow behind and break no route."""
    slowest = now.index(min(now))
    spans = [member.span for member in members]
    from_start, to_end = edges(spans, num_blocks)
    targets = [Span(a, b) for a in sorted(from_start) if a <= slowest for b in sorted(to_end) if b > slowest]
    ranked: list[tuple[tuple[float, ...], bytes, int, Span]] = []
    for index in _movers(members, moved):
        member = members[index]
        on_route = member.span.start in from_start and member.span.stop in to_end
        leaves = member.throughput if on_route else 0.0
        if on_route and any(now[block] - leaves < goal for block in range(member.span.start, member.span.stop)):
            continue
        for target in targets:
            if len(target) <= member.capacity_blocks and target != member.span:
                brings = member.speed / len(target)
                fixed = sum(now[block] < goal <= now[block] + brings for block in range(target.start, target.stop))
                missed = min(now[member.span.start : member.span.stop]) - leaves
                ranked.append(((-fixed, -brings, -missed), digest(member.peer), index, target))
    for _rank, _digest, index, target in sorted(ranked):
        candidate = members[index].at(target)
        others = [member for place, member in enumerate(members) if place != index]
        is_missed = not is_routable(others, num_blocks) or not keeps_ends(members, others, num_blocks)
        if not is_missed and _lifts([*others, candidate], now, goal, slowest, num_blocks):
            return index, candidate
    return None


def _movers(members: Sequence[Member], moved: set[int]) -> list[int]:
    """One of each kind: replicas of a span that are alike leave it alike."""
    kinds: dict[tuple[Span, int, float, frozenset[Unit]], int] = {}
    for index, member in enumerate(members):
        if member.capacity_blocks and index not in moved:
            kinds.setdefault((member.span, member.capacity_blocks, member.speed, member.beside), index)
    return list(kinds.values())


def _lifts(members: Sequence[Member], before: Sequence[float], goal: float, slowest: int, num_blocks: int) -> bool:
    """Whether the slowest block gains and none becomes slow, counted anew: a span that others joined may be on no route now."""
    after = throughputs(members, num_blocks)
    return after[slowest] > before[slowest] and all(new >= min(goal, old) for new, old in zip(after, before, strict=True))
