"""Which sources of one download have a place, and which come next.

Pure: clocks are arguments.

A place is kept by delivering. A source that sends nothing, or next to nothing, while it owes gives its place to one that waits; it may
come again later, after those that have failed less often. It is given twice the time then, so that a slow honest line is not mistaken for
a silent one for ever; but not while one waits that has failed less often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.weights.reputation import Reputation

TRIAL_S = 2.0
"""A source that has never delivered may be silent for so long while others wait (then twice as long, up to MAX_TRIAL_S)."""

MAX_TRIAL_S = 32.0
"""More than one piece takes at SLOWEST_BYTES_S."""

JUDGED_S = 20.0
"""A source that has delivered is judged by so much of the past."""

SLOWEST_BYTES_S = 32 << 10
"""A source that is slower than this gives its place to one that waits. Uploaders promise each stream twice as much."""

EXPLORE_S = 15.0
"""So often the slowest of all gives its place to one that was never tried, as in BitTorrent (optimistic unchoking)."""

PAUSE_S = 2.0
"""A source that failed is tried again after this (then after twice as long); one that was full, after this each time."""


@dataclass(slots=True)
class _Place:
    since_s: float
    """When it began to owe without a break, or what is judged begins."""
    heard_s: float
    """When it last sent something, or was asked while it owed nothing."""
    num_bytes: int = 0
    """Of right pieces, since `since_s`."""
    has_given: bool = False

    def bytes_s(self, now_s: float) -> float:
        return self.num_bytes / max(now_s - self.since_s, 1e-6)


class Roster:
    """The sources of one download."""

    def __init__(self, reputation: Reputation, max_sources: int, pause_s: float = PAUSE_S) -> None:
        """pause_s: see PAUSE_S."""
        self._reputation, self._most, self._pause_s = reputation, max_sources, pause_s
        self._known: list[PeerRecord] = []
        self._places: dict[PeerId, _Place] = {}
        self._again_s: dict[PeerId, float] = {}
        self._pauses_s: dict[PeerId, float] = {}
        self._refused: set[PeerId] = set()
        self._explored_s = float("-inf")

    # --- who comes next

    def know(self, records: Sequence[PeerRecord]) -> None:
        """Who may be asked, the best first."""
        self._known = list(records)

    def waiting(self, now_s: float) -> list[PeerRecord]:
        """Those that might have a place now: who has failed least often comes first, then the best."""
        found = [
            record
            for record in self._known
            if record.peer not in self._places
            and record.peer not in self._refused
            and self._again_s.get(record.peer, now_s) <= now_s
        ]
        return sorted(found, key=lambda record: self._reputation.failures(record.peer))

    def next(self, now_s: float, extra: int = 0) -> list[PeerRecord]:
        """Who gets a free place; `extra`: so many get one although none is free, until there are twice as many as there should be."""
        free = self._most - len(self._places)
        return self.waiting(now_s)[: max(free, extra if free > -self._most else 0, 0)]

    def connect_s(self, peer: PeerId) -> float:
        """How long it has to answer at all."""
        return min(MAX_TRIAL_S, TRIAL_S * 2.0 ** min(self._reputation.failures(peer), 2))

    def open(self, peer: PeerId, now_s: float) -> None:
        self._places[peer] = _Place(now_s, now_s)

    def close(self, peer: PeerId, now_s: float, *, has_failed: bool) -> None:
        """It has no place any more, and waits a while for the next one."""
        self._places.pop(peer, None)
        if has_failed:
            self._reputation.failed(peer)
        pause_s = self._pauses_s.get(peer, self._pause_s) if has_failed else self._pause_s
        self._pauses_s[peer] = min(2 * pause_s, 16 * self._pause_s)
        self._again_s[peer] = now_s + pause_s

    def vacate(self) -> None:
        """No source is asked any more, for now."""
        self._places.clear()

    def refuse(self, peer: PeerId) -> None:
        """It has lied: never again in this download."""
        self._places.pop(peer, None)
        self._refused.add(peer)

    # --- what they do

    def asked(self, peer: PeerId, now_s: float) -> None:
        """It owed nothing until now."""
        place = self._places[peer]
        place.since_s = place.heard_s = now_s
        place.num_bytes = 0

    def heard(self, peer: PeerId, num_bytes: int, now_s: float) -> None:
        """It has sent something right; num_bytes: of a piece."""
        place = self._places[peer]
        place.heard_s = now_s
        place.num_bytes += num_bytes
        if num_bytes:
            place.has_given = True
            self._reputation.gave(peer, num_bytes)
        if now_s - place.since_s > 2 * JUDGED_S:  # what was long ago counts half
            place.since_s, place.num_bytes = now_s - JUDGED_S, place.num_bytes // 2

    # --- who gives way

    def giving_way(self, now_s: float, is_idle: Callable[[PeerId], bool]) -> list[PeerId]:
        """Those that give their places to others now, the least useful first; as many as there are others, at most."""
        waiting = self.waiting(now_s)
        num_waiting = len(waiting) - max(0, self._most - len(self._places))
        if num_waiting <= 0:
            return []
        fewest = self._reputation.failures(waiting[0].peer)
        busy = {peer: place for peer, place in self._places.items() if not is_idle(peer)}
        useless = [peer for peer, place in busy.items() if self._is_useless(peer, place, now_s, fewest)]
        if not useless and len(busy) >= self._most and now_s - self._explored_s > EXPLORE_S:
            useless = [peer for peer, place in busy.items() if now_s - place.since_s > EXPLORE_S and self._has_strangers(now_s)]
            useless = sorted(useless, key=lambda peer: busy[peer].bytes_s(now_s))[:1]
            self._explored_s = now_s if useless else self._explored_s
        return sorted(useless, key=lambda peer: busy[peer].bytes_s(now_s))[:num_waiting]

    def _is_useless(self, peer: PeerId, place: _Place, now_s: float, fewest: int) -> bool:
        """fewest: failures of the best that waits."""
        limit_s = JUDGED_S
        if not place.has_given:
            limit_s = min(MAX_TRIAL_S, TRIAL_S * 2.0 ** min(self._reputation.failures(peer), fewest, 5))
        is_slow = now_s - place.since_s > max(JUDGED_S, limit_s) and place.bytes_s(now_s) < SLOWEST_BYTES_S
        return now_s - place.heard_s > limit_s or is_slow

    def _has_strangers(self, now_s: float) -> bool:
        return any(not self._reputation.has_given(record.peer) for record in self.waiting(now_s))
