"""How a request gets one of the gateway's places."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request as HttpRequest

from node.gateway.callers.meter import Meter
from node.gateway.callers.places import Places
from node.gateway.http.hanging_up import while_listening


@asynccontextmanager
async def admitted(places: Places, http: HttpRequest) -> AsyncIterator[Meter]:
    """Wait in the queue, while the client listens; then it has a place until the end.

    RefusedError (429) if it gets none, HungUpError if the client has gone.
    """
    meter: Meter = http.state.meter
    clock = meter.account.clock
    began_s = clock.now_s()
    with places.place(meter.account.name) as place:
        if not place.is_taken:
            await while_listening(http, place.granted())
        meter.waited(clock.now_s() - began_s)
        yield meter
