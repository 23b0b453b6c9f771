"""From which networks members call us, as our daemon sees their connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from hivemind.p2p import PeerID

from swarm.prefixes import UNKNOWN, prefix

SHARE = 10
"""Pause between two questions to the daemon, in times of what the last one took: under a flood every caller is a new one."""


class Origins:
    """The network (`swarm/prefixes.py`) of each connected peer; asked of the daemon when a caller is not known yet."""

    def __init__(self, connections: Callable[[], Awaitable[Iterable[Any]]]) -> None:
        """connections: the daemon's list of connected peers, each with `peer_id` and `addrs`; it raises nothing."""
        self._connections = connections
        self._found: dict[PeerID, str] = {}
        self._next_s = 0.0
        self._asking = asyncio.Lock()

    async def of(self, peer: PeerID) -> str:
        """`UNKNOWN` where the connection is gone already."""
        if peer not in self._found:
            async with self._asking:
                if peer not in self._found:
                    await self._refresh()
        return self._found.get(peer, UNKNOWN)

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._next_s - time.monotonic()))
        began_s = time.monotonic()
        self._found = {one.peer_id: _network(one.addrs) for one in await self._connections()}
        self._next_s = time.monotonic() + SHARE * (time.monotonic() - began_s)


def _network(addresses: Iterable[Any]) -> str:
    """Of `/ip4/203.0.113.7/tcp/50321`, say; through a relay it is the relay's."""
    for address in addresses:
        parts = str(address).split("/")
        if len(parts) > 2 and parts[1] in ("ip4", "ip6"):
            return prefix(parts[2])
    return UNKNOWN
