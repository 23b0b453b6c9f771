"""From which networks members call us, as our daemon sees their connections."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from hivemind.p2p import PeerID

from protocols.errors import PeerUnreachableError
from swarm.prefixes import UNKNOWN, prefix

SHARE = 10
"""Pause between two questions to the daemon, in times of what the last one took: under a flood every caller is a new one."""

MAX_PAUSE_S = 1.0
"""Longest such pause, in seconds."""


class Origins:
    """The network (`swarm/prefixes.py`) of each connected peer; asked of the daemon when a caller is not known yet.

    One question serves all callers that came before it, so that those who are gone again do not wait one after the other.
    """

    def __init__(self, connections: Callable[[], Awaitable[Iterable[Any]]], clock: Callable[[], float] = time.monotonic) -> None:
        """connections: the daemon's list of connected peers, each with `peer_id` and `addrs`; PeerUnreachableError if it does not
        answer: then the last list holds."""
        self._connections, self._clock = connections, clock
        self._found: dict[PeerID, str] = {}
        self._began_s, self._next_s = -math.inf, -math.inf
        """When the last question was put, and when the next one may be."""
        self._asking = asyncio.Lock()

    async def of(self, peer: PeerID) -> str:
        """`UNKNOWN` if the connection is gone already."""
        came_s = self._clock()
        if peer not in self._found:
            async with self._asking:
                if peer not in self._found and self._began_s <= came_s:
                    await self._refresh()
        return self._found.get(peer, UNKNOWN)

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        self._began_s = self._clock()
        with contextlib.suppress(PeerUnreachableError):
            self._found = {one.peer_id: _network(one.addrs) for one in await self._connections()}
        ended_s = self._clock()
        self._next_s = ended_s + min(SHARE * (ended_s - self._began_s), MAX_PAUSE_S)


def _network(addresses: Iterable[Any]) -> str:
    """Of `/ip4/203.0.113.7/tcp/50321`, say; through a relay it is the relay's."""
    for address in addresses:
        parts = str(address).split("/")
        if len(parts) > 2 and parts[1] in ("ip4", "ip6"):
            return prefix(parts[2])
    return UNKNOWN
