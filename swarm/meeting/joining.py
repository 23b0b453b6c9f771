"""Meets the swarm and stays in it.

Asks given peers, else the known ones, else neighbours; again when all contacts are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocols.errors import (
    BadRequestError,
    NotAllowedError,
    PeerUnreachableError,
    PrivateSwarmError,
    ProtocolVersionError,
    SwarmError,
)
from protocols.ids import PeerId
from protocols.words import few
from swarm import recent
from swarm.dht.address import PeerAddress
from swarm.meeting.bootstrap import given_are_silent
from swarm.meeting.neighbours import Neighbours

log = logging.getLogger(__name__)

_MAX_NOTED = 1_024
"""Addresses that are ignored, and peers that were met."""

_MAX_SAID = 16
"""Peers that are not for us of which the log tells; a neighbour may announce any number."""

NEIGHBOUR_S = 3.0
"""How long a node that was given no peer looks for neighbours before it serves as the first; mDNS takes 0.8 to 1.6 s."""

_FIRST_PAUSE_S = 0.5
"""Pause after the first round in which no peer answers; twice as long after each further one."""

_LONGEST_PAUSE_S = 4.0
"""A user may wait for the network to be back."""

_TELL_S = 15.0
"""How often it is said that no peer answers yet."""

_WATCH_S = 1.0
"""How soon a peer that has lost all contacts looks for others."""

_REFUSALS = (BadRequestError, ProtocolVersionError, PrivateSwarmError, NotAllowedError)


def is_refusal(error: object) -> bool:
    """Does it say that this peer and we do not belong together? Other failures may pass: it is busy, say, or leaves."""
    return isinstance(error, _REFUSALS)


class Meeting(Protocol):
    """What joining needs of `swarm.dht.node.Dht`."""

    @property
    def num_neighbours(self) -> int: ...

    async def join(self, address: PeerAddress) -> None: ...

    async def look_around(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """How a round went: who answered and who did not, of which kind of peers."""

    kind: str
    """`given`, `remembered` or `neighbouring`."""

    answered: tuple[PeerAddress, ...] = ()
    failed: tuple[PeerAddress, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.answered)} of {len(self.answered) + len(self.failed)} {self.kind} peers answer"


@dataclass(slots=True, kw_only=True)
class Sources:
    """Where peers can be found; each source is tried only if no peer of those before it answers."""

    given: Sequence[PeerAddress] = ()
    remembered: Callable[[], Sequence[PeerAddress]] = tuple
    """Asked again every round."""

    say: Callable[[str], None] = lambda text: None
    """Tells the user of peers that were not named, before they are asked."""

    may_join: Callable[[int], Awaitable[bool]] | None = None
    """Asks the user whether that many neighbours, which are in our swarm, may be joined; None = they may."""

    has_lan: bool = False
    """Are neighbours looked for?"""

    check: Callable[[PeerAddress], Awaitable[None]]
    """Raises a SwarmError unless the peer at the address, which is not trusted yet, proves its PeerID and is in our swarm."""

    neighbours: Neighbours = field(default_factory=Neighbours)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTimes:
    """Pauses between the rounds of a `Joiner`, in seconds."""

    min_pause_s: float = 1.0
    """Least pause between two rounds that new neighbours cause: one may announce new addresses all the time."""

    look_around_s: float = 30.0
    """How often a peer that has joined asks for new neighbours, and whether it still has any."""


class Joiner:
    """Runs until cancelled. Without any source a peer is the first of its swarm, which counts as joined."""

    def __init__(
        self,
        dht: Meeting,
        sources: Sources,
        on_change: Callable[[Met | None, str], Awaitable[None]],
        times: JoinTimes | None = None,
    ) -> None:
        """on_change(met, text) once for every time that we join, on_change(None, text) if no peer answers, and again every _TELL_S."""
        self._dht, self._sources, self._on_change = dht, sources, on_change
        self._times = times or JoinTimes()
        self._has_joined = asyncio.Event()
        self._ignored: dict[PeerAddress, None] = {}
        """Of other swarms, or without a common version."""
        self._met: dict[tuple[PeerId, int], None] = {}
        """Who has answered, with the port: on this machine and on the network the same node has different hosts."""
        self._has_asked = asyncio.Event()
        """The first round is over."""
        self._last_failure = ""
        self._refusal: SwarmError | None = None
        """Why the given peers refuse us, if no other peer was met; `joined` raises it at once, since waiting cannot change it."""
        self._is_answered = asyncio.Event()
        """Set while no question about neighbours waits for the user's answer."""
        self._is_answered.set()
        self._has_said = False
        self._told_s = -math.inf
        """When it was last said that no peer answers; on the loop's clock, as the next."""
        self._heard_s = -self._times.min_pause_s
        """When new neighbours last caused a round, on the loop's clock."""
        if not (sources.given or sources.remembered() or sources.has_lan):
            self._has_joined.set()

    @property
    def has_joined(self) -> bool:
        """Have we met a peer so far, or was there none to ask?"""
        return self._has_joined.is_set()

    def ask_now(self) -> None:
        """Begin the next round without the rest of the pause."""
        self._sources.neighbours.news.set()

    async def joined(self, timeout_s: float) -> None:
        """Returns once we have met a peer. PeerUnreachableError if not in time, with the reason, or at once if a given peer refuses us."""
        if not await self._happens(self._has_joined, timeout_s):
            why = self._last_failure or ("no neighbour has been heard" if self._sources.has_lan else "no peer was asked yet")
            raise PeerUnreachableError(
                f"no peer of the swarm answers within {timeout_s:.0f} s: {why}; check --peer, and that it runs"
            ) from None
        if self._refusal:
            raise self._refusal

    async def settled(self, timeout_s: float) -> None:
        """Returns once we have met a peer, or it is clear for now that there is none: then we are the first, and go on looking."""
        await self._happens(self._has_joined if self._sources.has_lan else self._has_asked, timeout_s)

    async def _happens(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Wait for an event, and for so long again once the user has answered: the time of thinking does not count."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
            if event.is_set() or self._is_answered.is_set():
                return event.is_set()
            await self._is_answered.wait()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        times, pause_s, looked_s = self._times, _FIRST_PAUSE_S, clock()
        while True:
            self._sources.neighbours.news.clear()
            is_in = bool(self._dht.num_neighbours) or await self._meet()
            self._has_asked.set()
            if is_in:
                pause_s = _FIRST_PAUSE_S
                await self._news_within(min(_WATCH_S, max(0.0, looked_s + times.look_around_s - clock())))
                with contextlib.suppress(PeerUnreachableError):  # the DHT is being started again
                    if clock() - looked_s >= times.look_around_s:
                        looked_s = clock()
                        await self._dht.look_around()
                    await self._meet_neighbours(only_new=True)  # another part of the swarm, perhaps, that has just come up
                continue
            await self._news_within(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _news_within(self, pause_s: float) -> None:
        """Wait for a neighbour that we did not know, for `pause_s` at most."""
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await asyncio.sleep(max(0.0, self._heard_s + self._times.min_pause_s - clock()))
                await self._sources.neighbours.news.wait()
                self._heard_s = clock()

    async def _meet(self) -> bool:
        """One round. True if a peer answered, or if there is no peer to ask and never will be."""
        sources, self._refusal = self._sources, None
        if sources.given and await self._try("given", sources.given):
            return True
        remembered = [one for one in sources.remembered() if one not in sources.given and one not in self._ignored]
        if sources.given and remembered and not self._has_said:
            self._has_said = True
            sources.say(given_are_silent(len(sources.given), self._last_failure, len(remembered)))
        if (remembered and await self._try("remembered", remembered)) or await self._meet_neighbours():
            return True
        if self._refusal and not self._has_joined.is_set():
            self._has_joined.set()  # who waits is told
        elif sources.given or remembered:
            await self._tell_failure("given" if sources.given else "remembered")
        return not (sources.given or remembered or sources.has_lan)

    async def _tell_failure(self, kind: str) -> None:
        """At once, and every _TELL_S while it goes on."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            await self._on_change(None, f"no {kind} peer answers, we keep trying: {self._last_failure}")

    async def _meet_neighbours(self, *, only_new: bool = False) -> bool:
        chosen = self._sources.neighbours.to_ask(self._ignored, only_new=only_new)
        if only_new:  # we are in, by one of them perhaps
            chosen = [one for one in chosen if (one.peer, one.port) not in self._met]
        are_ours = await asyncio.gather(*(self._is_ours(one) for one in chosen))
        ours = [address for address, is_ours in zip(chosen, are_ours, strict=True) if is_ours]
        return bool(ours) and await self._may_join(ours) and await self._try("neighbouring", ours)

    async def _is_ours(self, address: PeerAddress) -> bool:
        try:
            await self._check("neighbouring", address)
        except SwarmError as error:
            self._last_failure = str(error)
            return False
        return True

    async def _may_join(self, neighbours: Sequence[PeerAddress]) -> bool:
        """The user's word. After a no these neighbours are left alone."""
        if self._sources.may_join is None:
            return True
        self._is_answered.clear()
        try:
            if await self._sources.may_join(len({address.peer for address in neighbours})):
                return True
        finally:
            self._is_answered.set()
        self._last_failure = "neighbours were heard, and the answer was not to join them"
        self._ignore(neighbours)
        return False

    def _ignore(self, addresses: Sequence[PeerAddress]) -> None:
        for one in addresses:
            recent.note(self._ignored, one, None, _MAX_NOTED)

    async def _try(self, kind: str, addresses: Sequence[PeerAddress]) -> bool:
        """Ask all at once. True if one answered."""
        results = await asyncio.gather(*(self._join(kind, address) for address in addresses), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, SwarmError):
                raise result
        pairs = list(zip(addresses, results, strict=True))
        met = Met(
            kind=kind,
            answered=tuple(address for address, result in pairs if result is None),
            failed=tuple(address for address, result in pairs if result is not None),
        )
        if met.answered:
            self._refusal, self._told_s = None, -math.inf
            for one in met.answered:
                recent.note(self._met, (one.peer, one.port), None, _MAX_NOTED)
            await self._on_change(met, f"joined: {met}")
            self._has_joined.set()
            return True
        self._last_failure = few([str(result) for result in results])
        if kind == "given":
            self._refusal = next((one for one in results if isinstance(one, SwarmError) and is_refusal(one)), None)
        return False

    async def _join(self, kind: str, address: PeerAddress) -> None:
        if kind == "remembered":
            await self._check(kind, address)
        await self._dht.join(address)

    async def _check(self, kind: str, address: PeerAddress) -> None:
        try:
            await self._sources.check(address)
        except _REFUSALS as error:  # of another swarm, say, and that stays so
            self._ignore([address])
            level = logging.WARNING if len(self._ignored) <= _MAX_SAID else logging.DEBUG
            log.log(level, "the %s peer at %s is not for us: %s", kind, address, error)
            raise
