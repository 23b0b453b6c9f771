"""Finds the routes of one session."""

from __future__ import annotations

from collections.abc import Collection

from protocols.errors import NoRouteError
from protocols.ids import PeerId, Span
from protocols.inference import Route
from protocols.units import ENDS, Unit
from protocols.weights_id import Weights
from swarm.inference.client.step_waits import StepWaits
from swarm.inference.requests import SessionConfig
from swarm.routing.router import Found, Router

REFUSED_S = 2.0
"""How long, in seconds, the client looks for another peer after one has refused the request."""


class RouteSearch:
    """Every route of a session has the same weights, compute dtype and units."""

    def __init__(self, router: Router, config: SessionConfig, waits: StepWaits) -> None:
        self.dtype: str | None = None
        """Compute dtype, known once there was a first route; the later ones have the same."""
        self.weights: Weights | None = None if router.takes_newest else router.weights
        """What the session computes with; of a model in training known once there was a first route."""
        self.versions: list[int] = []
        """Of a model in training: the versions that have answered, one after the other."""
        self.is_thin = False
        """The first and the last hop must host embedding and head."""
        self.forked_places: set[tuple[PeerId, Span]] | None = None
        """Hops that may still hold the session that this one is a fork of."""
        self._router, self._config, self._waits = router, config, waits

    @property
    def _needs(self) -> frozenset[Unit]:
        """What the first and the last hop must host beside their blocks."""
        return ENDS if self.is_thin else frozenset()

    def has_answered(self) -> None:
        """A reply came that can be used."""
        if self._router.takes_newest and self.weights is not None and self.versions[-1:] != [self.weights.version]:
            self.versions.append(self.weights.version)

    async def first(self) -> tuple[Route, str]:
        """The session's first route. NoRouteError or ModelMismatchError says why there is none."""
        config = self._config
        if self.weights is None:
            found = await self.newest()
            self.weights, self.dtype = found.weights, found.dtype
            return found.route, found.dtype
        route, self.dtype = await self._router.find(
            config.route_timeout_s,
            config.dtype,
            self.forked_places,
            needs=self._needs,
            blocks=config.blocks,
            weights=self.weights,
            on_wait=self._waits.late,
        )
        return route, self.dtype

    async def newest(self) -> Found:
        """A route of the newest version of a model in training. The session goes on with its own until `weights` is set."""
        config = self._config
        return await self._router.find_newest(
            config.route_timeout_s, self.dtype or config.dtype, self._needs, config.blocks, on_wait=self._waits.late
        )

    async def replacement(
        self, holding: Collection[tuple[PeerId, Span]], refusers: Collection[PeerId] | None
    ) -> tuple[Route, str] | None:
        """A route that keeps the hops which hold the session. NoRouteError if there is none in time, VersionGoneError if there is none of
        the session's version any more, but of a newer one.

        refusers: peers that may have refused the request, which are avoided; None = a hop was lost otherwise. After a refusal the search
        lasts REFUSED_S at most, and returns None if there is no route.
        """
        config = self._config
        timeout_s = config.route_timeout_s if refusers is None else min(REFUSED_S, config.route_timeout_s)
        try:
            return await self._router.find(
                timeout_s,
                self.dtype,
                holding,
                needs=self._needs,
                blocks=config.blocks,
                weights=self.weights,
                on_wait=self._waits.late,
                avoiding=refusers or (),
            )
        except NoRouteError:
            if refusers is not None:
                return None
            raise

    async def beside(self, avoiding: Collection[PeerId]) -> tuple[Route, str]:
        """A route that can be had at once, without certain peers if there is one. Raises a SwarmError if there is none at all."""
        config = self._config
        return await self._router.find(
            0.0, self.dtype, (), needs=self._needs, blocks=config.blocks, weights=self.weights, avoiding=avoiding
        )
