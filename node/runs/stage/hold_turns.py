"""Who may have a stage hold another version, and when.

Pure: moments are arguments. One version is begun after the other, and at most a fifth of the time goes into it, however many callers ask.
A caller whose version no other stages hold, since its chains are wrong, has to wait; others have not.
"""

from __future__ import annotations

from protocols.errors import OverloadedError
from protocols.ids import PeerId

PAUSES = 4
"""So many times as long as holding a version took, no other one is begun. The trainer itself pauses twice as long (`copier.py`)."""

REFUSED_S = 60.0
"""Seconds in which a caller is refused after its version was not held by the others."""


class HoldTurns:
    """Of one stage."""

    def __init__(self) -> None:
        self._next_s = float("-inf")
        self._refused: dict[PeerId, float] = {}
        """Callers, and until when."""

    def check(self, caller: PeerId, now_s: float) -> None:
        """OverloadedError: it is too early for a version of this caller."""
        left_s = max(self._next_s, self._refused.get(caller, self._next_s)) - now_s
        if left_s > 0:
            raise OverloadedError(f"no version is held here for another {left_s:.1f} s: ask again then")

    def held(self, took_s: float, now_s: float) -> None:
        """A version is held; that took so long."""
        self._next_s = now_s + PAUSES * took_s

    def failed(self, caller: PeerId, now_s: float) -> None:
        """The others do not hold what this caller has named."""
        self._refused = {peer: until_s for peer, until_s in self._refused.items() if until_s > now_s}
        self._refused[caller] = now_s + REFUSED_S
