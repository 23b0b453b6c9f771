"""Limits how many next hops are dialled at once.

By client and in all: silent addresses cost the client that named them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from protocols.errors import OverloadedError
from protocols.ids import PeerId

MAX_DIALS_PER_CLIENT = 8
"""Peers that are dialled at once for the sessions of one client, by the PeerID that signed the grants. Further ones wait."""

MAX_DIALS = 256
"""Peers that are dialled at once for all clients; a client is refused only beyond this."""


class Dials:
    """Dials under way. A peer to which there is a connection needs none."""

    def __init__(self, max_per_client: int = MAX_DIALS_PER_CLIENT, max_in_all: int = MAX_DIALS) -> None:
        self._max_per_client, self._max_in_all = max_per_client, max_in_all
        self._turns: WeakValueDictionary[PeerId, asyncio.Semaphore] = WeakValueDictionary()
        self._num_running = 0

    @contextlib.asynccontextmanager
    async def turn(self, client: PeerId) -> AsyncIterator[None]:
        """The turn of `client` to have a peer dialled. OverloadedError if this node dials as many as it may."""
        turn = self._turns.setdefault(client, asyncio.Semaphore(self._max_per_client))
        async with turn:
            if self._num_running >= self._max_in_all:
                raise OverloadedError(f"this peer dials {self._num_running} others, its limit: try a replica of it")
            self._num_running += 1
            try:
                yield
            finally:
                self._num_running -= 1
