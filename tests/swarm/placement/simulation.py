"""A simulated swarm of peers that only place themselves.

They decide round by round, all at once, each by a look that may be a round old.
"""

from __future__ import annotations

import random
from dataclasses import replace

from protocols.ids import PeerId, Span
from protocols.units import ENDS
from swarm.placement.choose import Capacity, choose
from swarm.placement.members import Member, digest, ends_hosts, is_routable, num_covered, throughputs
from swarm.placement.rebalance import Hysteresis, Move, may_switch, plan

COOL_DOWN_ROUNDS = 6
"""The node's: a minute, with a look every ten seconds."""


class Simulation:
    """Members by peer, as they stand; `rounds` without any change end a settling."""

    def __init__(self, num_blocks: int, seed: int, manner: str = "together") -> None:
        self.num_blocks, self.random, self.manner = num_blocks, random.Random(seed), manner
        self.members: dict[PeerId, Member] = {}
        self.moves = self.rounds = 0
        self.without_ends: set[PeerId] = set()
        """Peers that never have memory for embedding and head; the others host them beside an outer span."""
        self._before: list[Member] = []
        self._hysteresis: dict[PeerId, Hysteresis] = {}
        self._plans: list[tuple[list[Member], dict[PeerId, Move]]] = []

    def arrive(self, peer: PeerId, capacity_blocks: int, speed: float = 1.0) -> None:
        """Choose by the look of a round ago, as a newcomer does."""
        capacity = Capacity(free_bytes=capacity_blocks, block_bytes=(1,) * self.num_blocks)
        span = choose(peer, self._before, capacity).span
        self._place(Member(peer=peer, span=span, capacity_blocks=capacity_blocks, speed=speed))

    def _place(self, member: Member) -> None:
        is_outer = member.span.start == 0 or member.span.stop == self.num_blocks
        self.members[member.peer] = replace(
            member, beside=ENDS if is_outer and member.peer not in self.without_ends else frozenset()
        )

    def leave(self, peer: PeerId) -> None:
        del self.members[peer]
        self._hysteresis.pop(peer, None)

    def round(self) -> int:
        """Each peer decides once, in this manner; returns how many moved.

        together: all by the same look, a round old; in_turn: each by a fresh one; mixed: each by one of these, at random.
        """
        old, now = self._before, list(self.members.values())
        moved = 0
        for peer in sorted(self.members, key=digest):  # those who switch at once wait for each other in this order (`stands`)
            member = self.members[peer]
            if self.manner == "in_turn":
                seen = list(self.members.values())
            else:
                seen = old if self.manner == "together" or self.random.random() < 0.5 else now
            hysteresis = self._hysteresis.setdefault(peer, Hysteresis(cool_down_s=COOL_DOWN_ROUNDS))
            move = hysteresis.consider(self._plan(seen).get(peer), self.rounds)
            if move is None or move.span == member.span:
                continue
            others = [other for other in self.members.values() if other.peer != peer]
            if may_switch(member, move.span, others, self.num_blocks):
                self._place(member.at(move.span))
                hysteresis.moved(self.rounds)
                moved += 1
        self._before, self.moves, self.rounds = now, self.moves + moved, self.rounds + 1
        return moved

    def _plan(self, seen: list[Member]) -> dict[PeerId, Move]:
        """The plan is the same for all who see the same: computed once."""
        for key, found in self._plans:
            if key is seen:
                return found
        self._plans = [*self._plans[-1:], (seen, plan(seen, self.num_blocks))]
        return self._plans[-1][1]

    def look(self) -> None:
        """A round passes in which no peer decides."""
        self._before = list(self.members.values())

    @property
    def could_cover(self) -> int:
        """Blocks that all memory together can hold."""
        return min(self.num_blocks, sum(member.capacity_blocks for member in self.members.values()))

    @property
    def is_healed(self) -> bool:
        """Every block that the memory can cover is, and where that is all of them there is a route."""
        members = list(self.members.values())
        covered = num_covered(members, self.num_blocks)
        return covered == self.could_cover and (covered < self.num_blocks or is_routable(members, self.num_blocks))

    @property
    def throughput(self) -> float:
        return min(throughputs(list(self.members.values()), self.num_blocks))

    @property
    def is_routable(self) -> bool:
        return is_routable(list(self.members.values()), self.num_blocks)

    @property
    def num_edges_with_ends(self) -> int:
        return sum(map(bool, ends_hosts(self.members.values(), self.num_blocks)))

    def spans(self) -> list[Span]:
        return sorted(member.span for member in self.members.values())
