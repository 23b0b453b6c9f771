"""How fast a route answers: single tokens, one after the other."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from protocols.inference import Route
from swarm.inference.client.session import Session
from swarm.thin.model import ThinModel

WARM_TOKENS, TOKENS = 4, 32
"""Tokens before timing, and timed ones."""

TOKEN = 0
"""The same again and again: which one it is does not change the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpeed:
    """Of one session of a client without weights."""

    route: Route
    token_ms: float
    """The median."""


async def measure(model: ThinModel, num_tokens: int = TOKENS) -> RouteSpeed:
    """Generate tokens and time them. NoRouteError and the like as of any session."""
    sequence = model.start()
    session = sequence.session
    assert isinstance(session, Session)
    times_ms = []
    try:
        for _ in range(WARM_TOKENS + num_tokens):
            began_s = time.perf_counter()
            await sequence.feed([TOKEN], 1, 1)
            times_ms.append((time.perf_counter() - began_s) * 1e3)
        return RouteSpeed(route=session.route, token_ms=statistics.median(times_ms[WARM_TOKENS:]))
    finally:
        await model.end(sequence)
