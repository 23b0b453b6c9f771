"""What a client has seen of peers: answers, failures and disputes.

Sessions report to it, and the router goes by it. It lives as long as the router, so all sessions of a client share it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection, Iterable

from protocols.errors import CacheFullError, DrainingError, OverloadedError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.inference import Route
from protocols.records import PeerRecord
from swarm.asking import Ping
from swarm.clock import Clock
from swarm.routing.blame import Blame
from swarm.routing.choice import DISBELIEVED_MS, Known
from swarm.routing.latency import FORGET_S, Latency
from swarm.routing.regard import Regard
from swarm.routing.suspects import Suspects

log = logging.getLogger(__name__)

NEW_MS = 100.0
"""Milliseconds by which a route over new peers must be faster than one over peers that have computed for us.

It counts for WARY_S after a new peer has computed.
"""

WARY_S = 60.0
"""Seconds for which, after a peer has failed that never computed for us, every other such peer counts as DISBELIEVED_MS slower.

For as long after a new peer has computed for us, the others count as NEW_MS slower: so a client tries about one new peer a minute.
"""


class Experience:
    """First-hand knowledge of peers."""

    def __init__(self, ping: Ping, regard: Regard, clock: Clock, on_failure: Callable[[], None]) -> None:
        """regard: what is thought of peers beforehand. on_failure: called for each failure that a session reports."""
        self.blame, self.suspects, self.latency = Blame(), Suspects(), Latency(ping, self._note_silent, clock)
        self._regard, self._now_s, self._on_failure = regard, clock.now_s, on_failure
        self._proven: dict[PeerId, float] = {}
        """Peers that a reply of a session came through, and when."""
        self._new_failed_until_s = self._new_answered_until_s = -math.inf
        """Until when new peers count as slower: because one has failed, and because one has computed for us (`caution_ms`)."""

    # --- what sessions report

    def failed(self, peer: PeerId, cause: SwarmError) -> None:
        """`peer` failed: avoid it for a while."""
        log.info("peer %s failed: %s", short_peer(peer), cause)
        now_s = self._now_s()
        is_first = not self.blame.is_avoided(peer, now_s)  # of the reports of this failure
        if is_first and not self.is_proven(peer) and not isinstance(cause, CacheFullError | OverloadedError | DrainingError):
            self._new_failed_until_s = now_s + WARY_S
        self.blame.add(peer, cause, now_s)
        self.latency.forget(peer)
        self._proven.pop(peer, None)
        self._on_failure()

    def answered(self, route: Route) -> None:
        """A reply that can be used came over `route`: its hops compute. They are asked first, and claims do not beat them."""
        now_s = self._now_s()
        for hop in route:
            self.suspects.clear(hop.peer, now_s)
        if not all(self.is_proven(hop.peer) for hop in route):
            self._new_answered_until_s = now_s + WARY_S
        self._proven = {peer: at_s for peer, at_s in self._proven.items() if now_s - at_s < FORGET_S}
        self._proven |= dict.fromkeys((hop.peer for hop in route), now_s)

    def dispute(self, one: PeerId, other: PeerId) -> None:
        """One of the two is at fault, and nothing shows which: pass both by for a while, if there is a way without them."""
        log.info("peers %s and %s contradict each other", short_peer(one), short_peer(other))
        self.suspects.add(one, other, self._now_s())
        self.suspects.add(other, one, self._now_s())

    def suspect(self, peer: PeerId) -> None:
        """It may be at fault, and nothing shows it: pass it by for a while, if there is a way without it."""
        self.suspects.add(peer, peer, self._now_s())

    def absolve(self, peer: PeerId) -> None:
        """`peer` was said to have failed, and it answers: it may be used, if it is only suspected."""
        self.blame.forgive(peer, self._now_s())

    def _note_silent(self, record: PeerRecord, cause: SwarmError) -> None:
        """It does not answer. If it never did, that says nothing of what else was seen."""
        if record.peer in self._proven:
            self.failed(record.peer, cause)
        else:
            log.debug("peer %s does not answer: %s", short_peer(record.peer), cause)
            self.blame.add(record.peer, cause, self._now_s())

    # --- what the router asks

    def is_proven(self, peer: PeerId) -> bool:
        """Has it computed for us, or does the user vouch for it?"""
        return peer in self._proven or self._regard.is_trusted(peer)

    def is_avoided(self, peer: PeerId) -> bool:
        """Has it failed lately?"""
        return self.blame.is_avoided(peer, self._now_s())

    def is_suspected(self, peer: PeerId) -> bool:
        """May it be at fault?"""
        return self.suspects.strikes(peer, self._now_s()) > 0

    def caution_ms(self) -> float:
        """Milliseconds by which all blocks count as slower at peers that never computed for us."""
        now_s = self._now_s()
        if now_s < self._new_failed_until_s:
            return DISBELIEVED_MS
        return NEW_MS if now_s < self._new_answered_until_s else 0.0

    def known(self, peers: Collection[PeerId]) -> Known:
        """What a choice among `peers` goes by now."""
        now_s = self._now_s()
        ready = frozenset(peer for peer in peers if self.latency.has_answered(peer) and not self.blame.is_avoided(peer, now_s))
        return Known(
            ready=ready,
            proven=frozenset(filter(self.is_proven, ready)),
            strikes=lambda peer: self.suspects.strikes(peer, now_s),
            caution_ms=self.caution_ms(),
            between_ms=self.latency.between_ms,
        )

    def order(self, records: Iterable[PeerRecord], holders: Collection[PeerId]) -> list[PeerRecord]:
        """Those that have not answered lately, in the order in which to ask them.

        First those that hold the session (`holders`), then those that have computed for us, then those that have answered before. The
        others come in random order: a PeerID that sorts first costs nothing to make.
        """
        due = [record for record in records if not self.latency.has_answered(record.peer)]
        random.shuffle(due)
        return sorted(
            due,
            key=lambda one: (
                one.peer not in holders,
                not self.is_proven(one.peer),
                not (self.latency.is_remembered(one.peer) or self._regard.has_met(one.peer)),
            ),
        )
