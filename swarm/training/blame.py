"""Which stages a trainer leaves out, and which micro-batches are at fault.

A stage is left out if it leaves, or if it or its neighbour sent values that cannot be used: of two neighbours it is not known which one is
at fault. A loss or gradient that is not finite may be a stage's fault or the micro-batch's. Stages that have nothing to do with each other
decide it: if two of them say the same, the micro-batch (or the learning rate) is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocols.errors import DrainingError, NonFiniteGradientError, NonsenseError, SwarmError
from protocols.ids import PeerId
from swarm.clock import Clock

BLAMED_S = 30.0
"""Seconds for which a stage is left out after values that cannot be used."""

LEAVING_S = 10.0
"""Seconds for which a stage is left out that has said that it leaves."""

MAX_REPORTS = 4
"""Reports after which a micro-batch is at fault, if no other way is left to try it."""


class Blame:
    """Of one trainer; all methods belong to one event loop."""

    def __init__(self, clock: Clock, on_accused: Callable[[PeerId, SwarmError], None] = lambda peer, cause: None) -> None:
        """on_accused: told each stage that is left out for BLAMED_S, once until that has passed."""
        self._clock, self._on_accused = clock, on_accused
        self._suspects: dict[PeerId, float] = {}
        self._accused: dict[PeerId, float] = {}
        self._reports: dict[int, list[frozenset[PeerId]]] = {}
        self._own: set[int] = set()
        self._words: dict[int, str] = {}

    def begin(self) -> None:
        """A new version: what was said of micro-batches of the last one is forgotten."""
        self._reports.clear()
        self._own.clear()
        self._words.clear()

    def note(self, index: int, hop: int, route: Sequence[PeerId], cause: SwarmError) -> None:
        """A micro-batch has failed at this hop of its route."""
        now_s = self._clock.now_s()
        if isinstance(cause, DrainingError):
            self._accused[route[hop]] = now_s + LEAVING_S
        elif isinstance(cause, NonsenseError):  # said by the hop above of this one, or by this one of the hop above
            self._accuse(route[hop], route[max(0, hop - 1) : hop + 1], now_s, cause)
        elif isinstance(cause, NonFiniteGradientError):  # its own word, but its gradient came from the hop below
            near = route[hop : hop + 2]
            self._words[index] = str(cause)
            self._reports.setdefault(index, []).append(frozenset(near))
            if len(near) == 1:
                self._own.add(index)
            self._accuse(near[-1], near, now_s, cause)

    def left_out(self) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """(all that may be at fault, only those that must not be asked now)."""
        now_s = self._clock.now_s()
        accused = frozenset(peer for peer, until_s in self._accused.items() if until_s > now_s)
        return accused | {peer for peer, until_s in self._suspects.items() if until_s > now_s}, accused

    def is_at_fault(self, index: int, *, has_other_way: bool) -> bool:
        """Is it the micro-batch, by what stages have said? has_other_way: there is a route without any that may be at fault."""
        reports = self._reports.get(index, [])
        if any(one.isdisjoint(other) for one in reports for other in reports):
            return True
        return not has_other_way and (index in self._own or len(reports) >= MAX_REPORTS)

    def last_word(self, index: int) -> str:
        """What a stage has said last of a micro-batch that was not finite."""
        return self._words.get(index, "")

    def _accuse(self, accused: PeerId, near: Sequence[PeerId], now_s: float, cause: SwarmError) -> None:
        is_new = self._accused.get(accused, 0.0) <= now_s
        self._accused[accused] = now_s + BLAMED_S
        for peer in near:
            self._suspects[peer] = now_s + BLAMED_S
        if is_new:
            self._on_accused(accused, cause)
