"""Whether this node should move, and where.

Each node computes the same plan for all nodes from the same snapshot. Pure.

A plan is a function of the snapshot alone, so nodes that see the same snapshot agree on who moves without a message. They do not always
see the same; a wrong move is seen by all in the next round, and a plan made from a plan's result is empty.
  - If no route exists, the member that is missed least fills the gap (`covering.py`).
  - If one exists, members move for a gain of the whole swarm (`balancing.py`).

In a *round* each node looks once. From any state, if no node comes or goes any more, ROUNDS rounds are enough for every block that
the memory can cover; tests/swarm/placement simulates it, with snapshots one round old.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId, Span
from swarm.placement.balancing import balance
from swarm.placement.choose import count_replicas, gaps_of, overlaps
from swarm.placement.covering import cover
from swarm.placement.members import Member, digest, is_routable, keeps_ends, num_covered, throughputs

ROUNDS = 5
"""Rounds after the last arrival or departure within which all is covered: one to see it, one to move, and the rest for those who
decided by looks of different ages (of 36,000 simulated events 12 took more than three rounds)."""


@dataclass(frozen=True, slots=True)
class Move:
    """Where a peer should go, and why. Urgent if a block has no host: then the move waits for no cool-down."""

    span: Span
    reason: str
    is_urgent: bool


def plan(members: Sequence[Member], num_blocks: int) -> dict[PeerId, Move]:
    """Who should move now. `members`: one claim per peer, in any order; empty if the swarm is best left alone."""
    old = {member.peer: member.span for member in members}
    after = cover(members, num_blocks)
    is_urgent = not is_routable(members, num_blocks)
    if not is_urgent:
        after = balance(after, num_blocks)
    why = _gap(members, num_blocks) if is_urgent else _gain(members, after, num_blocks)
    return {member.peer: Move(member.span, why, is_urgent) for member in after if member.span != old[member.peer]}


def decide(me: PeerId, members: Sequence[Member], num_blocks: int) -> Move | None:
    """What the plan says of `me`; None = stay."""
    return plan(members, num_blocks).get(me)


@dataclass(slots=True)
class Hysteresis:
    """What keeps one node from following every passing plan. Urgent moves go through; others must be the same in two looks, and rest."""

    cool_down_s: float
    """Seconds between two moves that are not urgent."""
    _last: Span | None = None
    _moved_s: float = -float("inf")

    def consider(self, move: Move | None, now_s: float) -> Move | None:
        """The move, if it is to be made now."""
        last, self._last = self._last, None if move is None else move.span
        if move is None or move.is_urgent:
            return move
        return move if move.span == last and now_s - self._moved_s >= self.cool_down_s else None

    def moved(self, now_s: float) -> None:
        """A move was made."""
        self._last, self._moved_s = None, now_s


def may_switch(me: Member, new: Span, others: Sequence[Member], num_blocks: int) -> bool:
    """The last look before `me` gives its span up for `new`: not at the cost of the last route, nor of a block while there is none.

    Where there is a route, so that the move is not urgent, not at the cost of the last ends at an edge of the model either.
    others: what the others serve now, without what they are about to give up before us (`stands`).
    """
    before, after = [*others, me], [*others, me.at(new)]
    if is_routable(before, num_blocks):
        return is_routable(after, num_blocks) and keeps_ends(before, after, num_blocks)
    if is_routable(after, num_blocks):
        return True
    if num_covered(after, num_blocks) >= num_covered(before, num_blocks):
        return True
    move = decide(me.peer, before, num_blocks)  # one step of several that together hold more
    return move is not None and move.span == new


def may_retire(me: Member, others: Sequence[Member], num_blocks: int) -> bool:
    """Whether `me` may serve nothing for a while: the others keep a route, with embedding and head if there is one with them now."""
    with_me = [*others, me]
    without = is_routable(others, num_blocks) and keeps_ends(with_me, others, num_blocks)
    return without or not is_routable(with_me, num_blocks)


def counted(me: Member, others: Sequence[Member], proven: Collection[PeerId]) -> list[Member]:
    """Those of `others` that `me` counts on: a peer that claims some of its blocks is a replica only if it has computed them for `me`.

    So `me` is the last of a block, and stays, as long as no other has shown that it can take over. Who hosts other blocks cannot be
    tested by `me`, and counts by its word.
    """
    return [other for other in others if other.peer in proven or not overlaps(me.span, [other.span])]


def stands(me: PeerId, other: PeerId, is_moving: bool) -> bool:
    """Whether what `other` serves may be counted on: of two who move at once, the one with the larger hash waits for the other."""
    return not is_moving or digest(me) < digest(other)


def _gap(members: Sequence[Member], num_blocks: int) -> str:
    gaps = gaps_of(count_replicas((member.span for member in members), num_blocks))
    if gaps:
        return f"no node hosts {', '.join(map(str, gaps[:4]))}, and of the nodes that can host them, this one is needed least where it is"
    return "all blocks are hosted, but the spans do not meet edge to edge, so there is no route"


def _gain(members: Sequence[Member], after: Sequence[Member], num_blocks: int) -> str:
    before, now = throughputs(members, num_blocks), throughputs(after, num_blocks)
    slowest = before.index(min(before))
    return f"block {slowest} is where every route is slowest; the whole swarm gets {min(now) / max(min(before), 1e-12):.2f} times as fast"
