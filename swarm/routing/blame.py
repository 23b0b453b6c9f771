"""Which peers failed lately.

A peer that failed is avoided for a while, longer each time, and forgiven when it answers again.

Pure bookkeeping: the clock is an argument. Sources of blame are first-hand only: the client's own dials, and what a hop says
about the hop below it (never about itself passing on news).
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.defaults import AVOID_S
from protocols.errors import CacheFullError, OverloadedError, SwarmError
from protocols.ids import PeerId

BUSY = (CacheFullError, OverloadedError)
"""Causes that pass by themselves, and of which an answer to a hello says nothing."""

MAX_AVOID_S = 600.0
FORGET_S = 900.0
"""A peer that has not failed for this long starts with a clean sheet."""

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 8.0
"""Where there is no way without it, a peer that failed is asked again after twice the first, doubled with every strike."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a peer, and until when that makes us avoid it."""

    cause: SwarmError
    at_s: float
    until_s: float
    strikes: int


class Blame:
    """Failures by peer. All times are of one monotonic clock."""

    def __init__(self) -> None:
        self._failures: dict[PeerId, Failure] = {}

    def add(self, peer: PeerId, cause: SwarmError, now_s: float) -> None:
        """`peer` failed: avoid it for AVOID_S, doubled with every strike up to ten minutes.

        Where it is avoided already, that is no new strike: many sessions tell of one death. Nor is it one to be full or busy, which passes,
        and then the peer is avoided for AVOID_S, also after many strikes: it does answer.
        """
        self._failures = {other: failure for other, failure in self._failures.items() if now_s - failure.at_s < FORGET_S}
        before = self._failures.get(peer)
        is_busy = isinstance(cause, BUSY)
        is_strike = before is None or (now_s >= before.until_s and not is_busy)
        strikes = (0 if before is None else before.strikes) + is_strike
        avoid_s = AVOID_S if is_busy else min(MAX_AVOID_S, AVOID_S * 2 ** (strikes - 1))
        self._failures[peer] = Failure(cause, now_s, now_s + avoid_s, strikes)

    def is_avoided(self, peer: PeerId, now_s: float) -> bool:
        failure = self._failures.get(peer)
        return failure is not None and now_s < failure.until_s

    def can_be_asked_again(self, peer: PeerId, now_s: float, *, has_moved: bool = False) -> bool:
        """May an answer to a ping end the avoidance? Not of one that was only full or refuses; less often with strikes.

        has_moved: it has another address than before, so it can be asked there without a pause.
        """
        failure = self._failures.get(peer)
        if failure is None or isinstance(failure.cause, BUSY) or not failure.cause.try_another_peer:
            return False
        pause_s: float = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**failure.strikes)
        return has_moved or now_s - failure.at_s >= pause_s

    def forgive(self, peer: PeerId, now_s: float) -> None:
        """The peer has answered: use it again, but remember its strikes."""
        failure = self._failures.get(peer)
        if failure is not None:
            self._failures[peer] = Failure(failure.cause, failure.at_s, now_s, failure.strikes)

    @property
    def last_cause(self) -> SwarmError | None:
        """The newest failure of any peer, for an error that tells why there is no route."""
        newest = max(self._failures.values(), key=lambda failure: failure.at_s, default=None)
        return None if newest is None else newest.cause
