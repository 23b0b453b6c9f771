"""Measures round trips to peers that host the following blocks.

Routing needs to know how far hops are from each other.

The client can measure its own way to every peer, but not theirs; so each node announces a few of its own measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn

from protocols.defaults import RECORD_RENEW_S
from protocols.errors import SwarmError
from protocols.ids import Span
from protocols.records import MAX_ROUND_TRIPS, PeerRecord
from protocols.weights_id import Weights
from swarm.peer.peer import Peer

HELLO_S = 2.0


def successors(records: Iterable[PeerRecord], weights: Weights, span: Span) -> list[PeerRecord]:
    """Serving peers one of whose spans of these weights starts where ours stops. Pure."""
    return [
        record
        for record in records
        if any(one.span.start == span.stop and record.state_of(one) == "serving" for one in record.blocks(weights))
    ][:MAX_ROUND_TRIPS]


async def keep_measuring(peer: Peer, find: Callable[[], Awaitable[Iterable[PeerRecord]]]) -> NoReturn:
    """Until cancelled, say hello to the peers that `find` returns, once before each renewal of our record. If `find` fails, as while the
    DHT is started again, the next turn asks it again."""
    while True:
        with contextlib.suppress(SwarmError):
            await asyncio.gather(*(_measure(peer, record) for record in await find()))
        await asyncio.sleep(RECORD_RENEW_S)


async def _measure(peer: Peer, record: PeerRecord) -> None:
    """Twice: the first hello may have to connect. A peer that does not answer is simply not measured."""
    with contextlib.suppress(SwarmError, TimeoutError):
        async with asyncio.timeout(HELLO_S):
            for _hello in range(2):
                await peer.ping(record)
