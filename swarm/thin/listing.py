"""Which models a swarm serves, asked again and again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig
from swarm.meeting.entering import ANYBODY, Entry
from swarm.peer.thin_peer import ThinPeer

Listing = Callable[[], Awaitable[list[str]]]
"""The names that are served now, those of most peers first."""


@contextlib.asynccontextmanager
async def open_listing(
    peers: Sequence[str], swarm: str = "public", find: FindConfig = NOBODY_ELSE, entry: Entry = ANYBODY
) -> AsyncIterator[Listing]:
    """Meet the swarm. Errors as of `ThinPeer`; each call of the listing may raise PeerUnreachableError."""
    async with ThinPeer(peers, swarm, find, entry) as peer:

        async def names() -> list[str]:
            return list(await peer.directory.models())

        yield names
