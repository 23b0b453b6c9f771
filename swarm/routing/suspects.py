"""Peers that may be at fault.

They are avoided if there is a way without them, used if there is none.

A hop that says of its neighbour "it is lost", while the neighbour answers, leaves two peers of whom one is wrong, and nothing shows which.
So both are suspected, each because of the other. A suspicion costs a route time (`path.py`), and it ends by itself or with an answer
that came through the peer. Proof is another matter: `blame.py`. Pure bookkeeping: the clock is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.defaults import AVOID_S
from protocols.ids import PeerId

MAX_SUSPECT_S = 120.0
FORGET_S = 900.0
"""A peer of whom nothing was said for this long starts with a clean sheet."""


@dataclass(frozen=True, slots=True)
class _Suspicion:
    because_of: frozenset[PeerId]
    at_s: float
    until_s: float


class Suspects:
    """Suspicions by peer. All times are of one monotonic clock."""

    def __init__(self) -> None:
        self._suspicions: dict[PeerId, _Suspicion] = {}

    def add(self, peer: PeerId, because_of: PeerId, now_s: float) -> None:
        """Suspect `peer` for AVOID_S, longer for each further peer that it has such a dispute with.

        The same dispute again counts once: many sessions tell of one broken connection.
        """
        self._suspicions = {other: kept for other, kept in self._suspicions.items() if now_s - kept.at_s < FORGET_S}
        before = self._suspicions.get(peer)
        reasons = (frozenset() if before is None else before.because_of) | {because_of}
        lasts_s = min(MAX_SUSPECT_S, AVOID_S * 2 ** (len(reasons) - 1))
        self._suspicions[peer] = _Suspicion(reasons, now_s, now_s + lasts_s)

    def strikes(self, peer: PeerId, now_s: float) -> int:
        """Disputes that count against it now; 0 = it is not suspected."""
        found = self._suspicions.get(peer)
        return 0 if found is None or now_s >= found.until_s else len(found.because_of)

    def clear(self, peer: PeerId, now_s: float) -> None:
        """An answer came through it: use it as before, but remember its disputes."""
        found = self._suspicions.get(peer)
        if found is not None:
            self._suspicions[peer] = _Suspicion(found.because_of, found.at_s, now_s)
