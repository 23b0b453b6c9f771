"""p2pd's pauses after failed dials, and what ends them early.

After each failed dial of an address, p2pd refuses to dial it for 5 s + n * n s, n being the failures so far; for 5 minutes at most. If a
network fails for two minutes, p2pd notices up to 40 s later that it is back, and it has no call that ends a pause. So if a peer answers
by gRPC, we know no member and p2pd has no connection, not even of a client, it is started again: that takes half a second, and breaks
only dials that have just begun. A peer whose p2pd cannot be reached, though it answers by gRPC, gains little by that: the rest between two
such starts grows.
Source: `DialBackoff` in https://github.com/libp2p/go-libp2p/blob/master/p2p/net/swarm/swarm_dial.go
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Protocol

from protocols.errors import PeerUnreachableError
from swarm.clock import SYSTEM, Clock
from swarm.dht.address import PeerAddress
from swarm.dht.dial_failures import DialPausedError

log = logging.getLogger(__name__)

REST_S = 30.0
"""Least seconds between two such starts; twice as long after each that brought no neighbour."""

LONGEST_REST_S = 600.0


class Dht(Protocol):
    """What this needs of `swarm.dht.node.Dht`."""

    @property
    def num_neighbours(self) -> int: ...

    async def is_alone(self) -> bool: ...

    async def join(self, address: PeerAddress) -> None: ...

    async def look_around(self) -> None: ...

    def end_daemon(self) -> None: ...


class Unpaused:
    """A DHT that is joined again soon after an outage. It is a `Meeting`."""

    def __init__(self, dht: Dht, check: Callable[[PeerAddress], Awaitable[None]], clock: Clock = SYSTEM) -> None:
        """check: raises a SwarmError unless the peer at the address answers a hello by gRPC."""
        self._dht, self._check, self._now_s = dht, check, clock.now_s
        self._ended_s = -math.inf
        """When p2pd was last ended for its pauses."""
        self._rest_s = REST_S
        self._is_in_vain = False
        """Has the last such end brought no neighbour so far?"""

    @property
    def num_neighbours(self) -> int:
        """Members that we know."""
        return self._dht.num_neighbours

    async def look_around(self) -> None:
        """Ask them for others."""
        await self._dht.look_around()
        self._note_neighbours()

    async def join(self, address: PeerAddress) -> None:
        """Meet the peer. PeerUnreachableError if that fails, though p2pd may be started again then; the error of `check` if it is not
        there."""
        try:
            await self._dht.join(address)
            self._note_neighbours()
        except DialPausedError:
            if self._is_resting:
                raise
            await self._answers(address)
            if await self._dht.is_alone() and not self._is_resting:
                self._end_daemon(address)
            raise

    async def _answers(self, address: PeerAddress) -> None:
        try:
            await self._check(address)
        except PeerUnreachableError as error:
            raise PeerUnreachableError(f"no peer answers at {address}: {error}") from None

    def _end_daemon(self, address: PeerAddress) -> None:
        self._dht.end_daemon()
        log.warning("p2pd pauses after failed dials, and %s is there: it is started again", address)
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S) if self._is_in_vain else REST_S
        self._ended_s, self._is_in_vain = self._now_s(), True

    def _note_neighbours(self) -> None:
        if self._dht.num_neighbours:
            self._rest_s, self._is_in_vain = REST_S, False

    @property
    def _is_resting(self) -> bool:
        return self._now_s() - self._ended_s < self._rest_s
