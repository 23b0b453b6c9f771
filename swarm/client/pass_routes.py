"""Routes of one pass, and what the router hears of failures.

A peer that fails is avoided, and another route is tried, until none is left for the time that a call may wait for one. A refusal that is
about the request itself (a sequence that is too long) is raised once enough peers have said so, or no other peer is left.
"""

from __future__ import annotations

from collections.abc import Callable

from protocols.errors import NonFiniteGradientError, NoRouteError, SwarmError
from protocols.ids import PeerId, Span
from protocols.route import Route
from protocols.weights_id import Weights
from swarm.inference.client import hearsay
from swarm.inference.client.hearsay import Refusal
from swarm.inference.client.route_search import REFUSED_S
from swarm.routing.router import Router
from swarm.training.chain import PassError
from swarm.waiting import Wait


class PassRoutes:
    """For one forward or one backward, with all its attempts. All methods belong to one event loop."""

    def __init__(
        self,
        router: Router,
        weights: Weights,
        blocks: Span | None,
        dtype: str,
        route_timeout_s: float,
        on_wait: Callable[[Wait | None], None],
    ) -> None:
        """weights: of every hop. blocks: None = all. dtype: compute dtype of every hop."""
        self._router, self._weights, self._blocks, self._dtype = router, weights, blocks, dtype
        self._timeout_s = route_timeout_s
        self._on_wait = on_wait
        self._refusals: list[Refusal] = []
        self._lost_at_s: float | None = None

    async def find(self) -> Route:
        """The next route to try. NoRouteError in the end; or the refusal, if every peer that is left has refused. VersionGoneError: of a
        model in training, only newer weights are served now."""
        refusers = frozenset[PeerId]().union(*(refusal.sayers for refusal in self._refusals))
        timeout_s = min(REFUSED_S, self._timeout_s) if refusers else self._timeout_s
        holding = None if self._lost_at_s is None else ()
        try:
            route, _dtype = await self._router.find(
                timeout_s,
                self._dtype,
                holding,
                blocks=self._blocks,
                weights=self._weights,
                avoiding=refusers,
                on_wait=self._on_wait,
            )
        except NoRouteError:
            if refusers:
                raise self._refusals[-1].cause from None
            raise
        if any(hop.peer in refusers for hop in route):
            raise self._refusals[-1].cause
        return route

    def worked(self, route: Route) -> None:
        """A reply that can be used came over it."""
        self._router.experience.answered(route)

    def failed(self, route: Route, error: PassError) -> None:
        """Avoid who failed. Raises the cause if no other peer would do better, or if hops were lost again and again."""
        cause, now_s, is_told = error.cause, self._router.clock.now_s(), error.hop > 0
        if self._lost_at_s is None:
            self._lost_at_s = now_s
        if not cause.try_another_peer or isinstance(cause, NonFiniteGradientError):
            self._refusals.append(Refusal(cause, hearsay.sayers(route, error.hop, is_told)))
            if hearsay.is_agreed(self._refusals):
                raise cause
            return
        self._router.experience.failed(error.peer, cause)
        if is_told:  # that is its word: it is passed by, too, if there is a way without it
            self._router.experience.suspect(route[error.hop - 1].peer)
        if now_s - self._lost_at_s > 2 * self._timeout_s:
            raise NoRouteError(f"hops were lost again and again for {now_s - self._lost_at_s:.0f} s; the last one: {cause}")


def is_late(error: SwarmError) -> bool:
    """Has the time of a pass run out, which says nothing about its hops if it has waited for its gradient?"""
    return isinstance(error, PassError) and error.cause.code == "deadline"
