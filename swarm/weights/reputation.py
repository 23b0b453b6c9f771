"""What peers have done for this process as sources of weights.

It remembers which peers delivered, which are connected, and how often others failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from protocols.ids import PeerId

MAX_FAILED = 4_096
"""Peers whose failures are remembered; beyond it, all failures are forgotten: made-up PeerIDs cost nothing."""

GAVE, CONNECTED, UNKNOWN, FAILED = range(4)
"""Ranks, the best first. What a peer announces of itself counts for none of them."""


class Reputation:
    """Kept as long as a process fetches. A peer that has delivered is asked first the next time."""

    def __init__(self, is_connected: Callable[[PeerId], bool] = lambda peer: False) -> None:
        """is_connected: True for a peer that has proven who it is on a connection that is up (`ChannelPool.is_connected`)."""
        self._is_connected = is_connected
        self._gave: Counter[PeerId] = Counter()
        self._failures: Counter[PeerId] = Counter()

    def gave(self, peer: PeerId, num_bytes: int) -> None:
        """These bytes were right. It has failed never before, then."""
        self._gave[peer] += num_bytes
        self._failures.pop(peer, None)

    def failed(self, peer: PeerId) -> None:
        """It did not answer, refused, or was too slow."""
        if len(self._failures) >= MAX_FAILED:
            self._failures.clear()
        self._failures[peer] += 1

    def has_given(self, peer: PeerId) -> bool:
        return self._gave[peer] > 0

    def failures(self, peer: PeerId) -> int:
        """Failures since it last delivered."""
        return self._failures[peer]

    def rank(self, peer: PeerId) -> int:
        """GAVE, CONNECTED, UNKNOWN or FAILED."""
        if self._failures[peer]:
            return FAILED
        if self._gave[peer]:
            return GAVE
        return CONNECTED if self._is_connected(peer) else UNKNOWN
