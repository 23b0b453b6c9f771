"""Meeting the swarm and staying in it: tries the bootstrap addresses until one answers, says so, and again when all contacts are lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from protocols.errors import PeerUnreachableError
from swarm.dht.address import PeerAddress

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
LOOK_AROUND_S = 30.0
"""How often a peer that has joined asks for new neighbours, and whether it still has any."""


class Meeting(Protocol):
    """What joining needs of `swarm.dht.node.Dht`."""

    @property
    def num_neighbours(self) -> int: ...

    async def join(self, address: PeerAddress) -> None: ...

    async def look_around(self) -> None: ...


class Joiner:
    """Runs until cancelled. Without bootstrap addresses a peer is the first of its swarm, which counts as joined."""

    def __init__(self, dht: Meeting, bootstrap: Sequence[PeerAddress], on_change: Callable[[bool, str], Awaitable[None]]) -> None:
        """on_change(True, text) once for every time that we join, on_change(False, text) for every round in which nobody answers."""
        self._dht, self._bootstrap, self._on_change = dht, tuple(bootstrap), on_change
        self._has_joined = asyncio.Event()
        self._last_failure = "nobody was asked yet"
        if not bootstrap:
            self._has_joined.set()

    async def joined(self, timeout_s: float) -> None:
        """Returns once we have met somebody; PeerUnreachableError says why that is not so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_joined.wait()
        except TimeoutError:
            raise PeerUnreachableError(
                f"no peer of the swarm answers within {timeout_s:.0f} s: {self._last_failure}; check --peer, and that it runs"
            ) from None

    async def run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if self._dht.num_neighbours or await self._meet():
                pause_s = FIRST_PAUSE_S
                await asyncio.sleep(LOOK_AROUND_S)
                with contextlib.suppress(PeerUnreachableError):  # the DHT is being started again
                    await self._dht.look_around()
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _meet(self) -> bool:
        """One round: all bootstrap addresses at once. True where one answered, or there are none."""
        if not self._bootstrap:
            return True
        results = await asyncio.gather(*map(self._dht.join, self._bootstrap), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if not isinstance(failure, PeerUnreachableError):
                raise failure
        if len(failures) < len(results):
            await self._on_change(True, f"joined: {len(results) - len(failures)} of {len(results)} given peers answer")
            self._has_joined.set()
            return True
        self._last_failure = "; ".join(map(str, failures))
        await self._on_change(False, f"no given peer answers, we keep trying: {self._last_failure}")
        return False
