"""Watches a session for replies that are late.

Then hops are asked how far they are, and other routes are tried. An honest slow node is never lost by this: it says that it computes, and
another leg runs beside it. Only a hop that says it has nothing to do, or gives no answer, or contradicts its neighbour in two successive
looks, is replaced.
"""

from __future__ import annotations

import asyncio

from protocols.errors import DeadlineError
from swarm.inference.client.leg import Leg
from swarm.inference.client.legs import Legs
from swarm.inference.client.pending import Pending
from swarm.inference.client.suspicion import Kind, Verdict
from swarm.inference.requests import SessionConfig

BUSY_FACTOR = 5
"""On a route that has answered before, a hop that says it computes has so many times longer until another route is tried beside it."""

SOONER = 3
"""If all running legs are stuck, the next one is tried after 1/SOONER of the usual time."""


class Watch:
    """A task of its own: no reply waits for a timer."""

    def __init__(self, legs: Legs, config: SessionConfig, pending: Pending) -> None:
        self._legs, self._config, self._pending = legs, config, pending
        self._num_tried = 0
        """Legs tried beside in this silence."""
        self._tried_s = 0.0
        """Seconds of silence at which the last leg was tried."""

    async def run(self) -> None:
        while not self._legs.is_over:
            silent_s = self._legs.lateness.silent_s
            if not self._pending.steps:
                await asyncio.sleep(self._config.stall_s / 4)
                continue
            late_s = self._legs.late_s()
            ask_s = late_s * 2 / 3  # so that the words are here when the time is over
            if silent_s < ask_s:
                self._num_tried, self._tried_s = 0, 0.0
                await asyncio.sleep(ask_s - silent_s + 0.001)
                continue
            await self._look(late_s)
            await asyncio.sleep(late_s / 3)

    async def _look(self, late_s: float) -> None:
        legs, heard_s = self._legs, self._legs.lateness.heard_s
        leg, epoch = legs.current, legs.current.epoch
        if legs.repair.is_running:
            return
        verdict, *_ = await asyncio.gather(*(one.look() for one in (leg, *legs.rivals)))
        silent_s = legs.lateness.silent_s
        if legs.lateness.heard_s != heard_s or legs.repair.is_running or epoch != leg.epoch or leg is not legs.current:
            return
        is_busy = leg.has_answered and verdict.kind is Kind.BUSY
        is_proven = silent_s >= late_s and leg.num_found > 1 and self._is_proof(leg, verdict)
        if is_proven or silent_s >= self._longest_s(verdict):
            place, *others = reversed(verdict.places)
            cause = DeadlineError(f"no reply for {silent_s:.0f} s, and it {verdict.kind.value}")
            leg.lose(place, cause, leg.epoch, tuple(others))
        elif silent_s >= max(self._tried_s + self._pause_s(late_s), BUSY_FACTOR * late_s if is_busy else 0.0):
            self._num_tried, self._tried_s = self._num_tried + 1, silent_s
            await legs.try_beside()

    def _pause_s(self, late_s: float) -> float:
        """Seconds until another leg is tried: fewer if all that run are stuck by their hops' own words, ever more while one computes."""
        if not all(leg.is_stuck for leg in (self._legs.current, *self._legs.rivals)):
            return late_s * 2.0**self._num_tried
        return late_s if not self._num_tried or self._legs.is_full else late_s / SOONER

    def _longest_s(self, verdict: Verdict) -> float:
        """Without an answer for so long, the hop at which the step is stuck is given up, whatever it says."""
        config = self._config
        return config.silence_s if verdict.kind is Kind.BUSY else min(config.silence_s, config.route_timeout_s)

    def _is_proof(self, leg: Leg, verdict: Verdict) -> bool:
        """Is a hop to be replaced? On a route that has never answered, others are tried beside instead, but for one that is dead."""
        return verdict.kind is Kind.SILENT or (leg.has_answered and verdict.kind is not Kind.BUSY)
