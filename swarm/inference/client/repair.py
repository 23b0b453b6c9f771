"""Repairs a leg that has lost a hop, by a new route.

The hops that stay keep their sequences. How many peers must refuse a request before it fails is in `hearsay.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from protocols.errors import NoRouteError, SwarmError, VersionGoneError
from protocols.ids import PeerId, short_peer
from swarm import waiting
from swarm.inference.client import hearsay
from swarm.inference.client.accusations import Accusations
from swarm.inference.client.hearsay import Refusal
from swarm.inference.client.lateness import Lateness
from swarm.inference.client.leg import Leg, Loss
from swarm.inference.client.route_search import RouteSearch
from swarm.inference.client.step_waits import StepWaits
from swarm.inference.requests import SessionConfig

log = logging.getLogger(__name__)


class Repair:
    """One at a time, for one session. What was lost and refused counts until a reply comes (`settle`)."""

    def __init__(
        self,
        config: SessionConfig,
        search: RouteSearch,
        accusations: Accusations,
        lateness: Lateness,
        waits: StepWaits,
        keep: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        begin_anew: Callable[[VersionGoneError], Awaitable[None]],
    ) -> None:
        """keep: runs the repair, awaits its end if the session is closed, and ends the session with what it raises.

        begin_anew: begins again with another version, or raises.
        """
        self.replaced = 0
        """Hops, so far."""
        self._config, self._search, self._accusations, self._lateness = config, search, accusations, lateness
        self._waits, self._keep, self._begin_anew = waits, keep, begin_anew
        self._refusals: list[Refusal] = []
        """Since the last reply."""
        self._mending: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """A new route is under way."""
        return self._mending is not None

    async def run(self, leg: Leg, loss: Loss) -> None:
        """Answer a loss with a new route. Returns when it is installed, the session has failed, or `cancel` was called."""
        self._mending = self._keep(self._mend(leg, loss), f"the repair of {leg}")
        await asyncio.wait((self._mending,))
        self._mending = None

    def cancel(self) -> None:
        """The leg is not needed any more."""
        if self._mending is not None:
            self._mending.cancel()

    def settle(self) -> None:
        """A reply came: what was lost and refused before it does not count any more."""
        self._refusals.clear()
        self._lateness.outage.end()

    async def _mend(self, leg: Leg, loss: Loss) -> None:
        try:
            await self._replace(leg, loss)
        finally:
            self._lateness.begin()

    async def _replace(self, leg: Leg, loss: Loss) -> None:
        """Route around a lost hop. Raises if no peer is left within `route_timeout_s`, or if enough peers refuse the same."""
        hop = leg.route[loss.index]
        log.info("%s: hop %d (%s, blocks %s) is lost: %s", leg, loss.index, short_peer(hop.peer), hop.span, loss.cause)
        lasts_s = self._lateness.outage.lost()
        if loss.is_told:  # news upon news: first hear what those say who were accused before
            await self._accusations.settle()
        self._accusations.by_loss(leg, loss)
        is_refusal = not loss.cause.try_another_peer
        if is_refusal:
            self._refusals.append(Refusal(loss.cause, hearsay.sayers(leg.route, loss.index, loss.is_told)))
            if hearsay.is_agreed(self._refusals):
                raise self._refused(loss.cause)
        self._waits.late(waiting.replacing(hop.span))
        gone = {loss.index, *loss.others}
        staying = {one.place for place, one in enumerate(leg.route) if place not in gone}
        try:
            found = await self._search.replacement(staying, self._refusers() if is_refusal else None)
        except VersionGoneError as gone:
            self._accusations.acquit(hop.peer)
            self.replaced += len(leg.route)
            log.info("%s: %s", leg, gone)
            await self._begin_anew(gone)
            return
        if found is None:
            raise self._refused(loss.cause)
        if lasts_s > 2 * self._config.route_timeout_s:
            raise NoRouteError(f"hops were lost again and again for {lasts_s:.0f} s; the last one: {loss.cause}")
        self.replaced += 1
        self._waits.late(waiting.replaying(hop.span))
        await leg.install(*found)

    def _refusers(self) -> frozenset[PeerId]:
        """Each peer that may have made a refusal up."""
        return frozenset[PeerId]().union(*(refusal.sayers for refusal in self._refusals))

    def _refused(self, cause: SwarmError) -> SwarmError:
        self._accusations.soften(self._refusers())
        return cause
