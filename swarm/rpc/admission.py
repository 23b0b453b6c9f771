"""Limits running calls and arriving requests, by peer and address.

A PeerID costs nothing to make, so limits by PeerID alone do not bind an attacker; addresses are limited, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from weakref import WeakValueDictionary

from protocols.errors import DeadlineError, OverloadedError
from protocols.ids import PeerId

MAX_CALLS = 4_096
"""Calls that run at once, of all peers; streams count while they are open."""

MAX_CALLS_PER_PEER = 960
"""Calls of one peer at once; below gRPC's 1,024 per connection, beyond which it would keep the caller waiting in silence."""

MAX_CALLS_PER_ADDRESS = MAX_CALLS // 2
"""Calls of one address at once (of an IPv6 network of 64 bits)."""

MAX_ARRIVING = 256
"""Calls of one address whose first message has not arrived yet; the next is refused."""

MAX_READ_AT_ONCE = 16
"""First messages of one address that are read at once. The others wait, and the transport holds 1 MiB of each at most."""

MAX_FRAMES_IN_PARTS = 8
"""Frames of which some parts have come and some have not, of all peers; one of each peer. Others wait."""

MAX_FRAMES_OF_ADDRESS = 2
"""Of these, frames from one address: some are left for the others, however many PeerIDs an address has."""

FRAME_S = 60.0
"""How long the parts of one frame may take to arrive."""


class Admission:
    """Counts running calls, and refuses those beyond a limit."""

    def __init__(self, max_calls: int, max_calls_per_peer: int, max_calls_per_address: int | None = None) -> None:
        self._max_calls, self._max_per_peer = max_calls, max_calls_per_peer
        self._max_per_address = max_calls if max_calls_per_address is None else max_calls_per_address
        self._peers: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    @contextlib.contextmanager
    def admitted(self, peer: PeerId, address: str) -> Iterator[None]:
        """OverloadedError if one more call would pass a limit; nothing was done then."""
        for who, running, limit in (
            ("peer", self._peers[peer], self._max_per_peer),
            ("address", self._addresses[address], self._max_per_address),
        ):
            if running >= limit:
                raise OverloadedError(
                    f"you have {running} calls running here, the limit of one {who}: end some, or ask another peer"
                )
        if self._peers.total() >= self._max_calls:
            raise OverloadedError(f"{self._max_calls} calls are running here, the limit: ask another peer, or again later")
        self._peers[peer] += 1
        self._addresses[address] += 1
        try:
            yield
        finally:
            _subtract(self._peers, peer)
            _subtract(self._addresses, address)


class Arrivals:
    """What is arriving and has not come as a whole. Until it is read, a message costs only what the transport takes unasked."""

    def __init__(self, max_arriving: int = MAX_ARRIVING, max_at_once: int = MAX_READ_AT_ONCE) -> None:
        self._max_arriving, self._max_at_once = max_arriving, max_at_once
        self._arriving: Counter[str] = Counter()
        self._frames = asyncio.Semaphore(MAX_FRAMES_IN_PARTS)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By address, as the next: for first messages."""
        self._frames_of_address: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._senders: WeakValueDictionary[PeerId, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """The turn of `address` to have a first message read. OverloadedError if too many of its calls wait for one."""
        if self._arriving[address] >= self._max_arriving:
            raise OverloadedError(f"{self._max_arriving} calls of your address have sent nothing yet, the limit: end some")
        self._arriving[address] += 1
        try:
            turn = self._turns.setdefault(address, asyncio.Semaphore(self._max_at_once))
            async with turn:
                yield
        finally:
            _subtract(self._arriving, address)

    @contextlib.asynccontextmanager
    async def in_parts(self, peer: PeerId, address: str) -> AsyncIterator[None]:
        """The turn of `peer` at `address` to send the rest of a frame in parts. DeadlineError if it takes too long."""
        of_peer = self._senders.setdefault(peer, asyncio.Lock())
        of_address = self._frames_of_address.setdefault(address, asyncio.Semaphore(MAX_FRAMES_OF_ADDRESS))
        try:
            async with of_peer, of_address, self._frames, asyncio.timeout(FRAME_S) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError(f"the parts of a frame did not arrive within {FRAME_S:.0f} s") from None


def _subtract(counter: Counter[str], key: str) -> None:
    """One fewer; a key that has none is forgotten."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
