"""The peers by which a peer stays in its swarm.

Whom to ask, and again when contact is lost, is decided in `swarm/meeting`; here this peer's hellos, its DHT and its user are put to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from protocols.errors import PeerUnreachableError, SwarmError
from swarm.dht.address import PeerAddress
from swarm.meeting.dial_pauses import Dht, Unpaused
from swarm.meeting.joining import NEIGHBOUR_S, Joiner, Met, Sources, is_refusal
from swarm.peer.config import PeerConfig
from swarm.peer.greeter import Greeter

log = logging.getLogger(__name__)

_REMEMBERED_FIRST_S = 2.0
"""Start that the remembered peers get before a client looks for neighbours."""


class Contacts:
    """Meets other peers for one peer, and meets them again after losses."""

    def __init__(self, config: PeerConfig, greeter: Greeter, dht: Dht) -> None:
        self._config, self._greeter, self._finder = config, greeter, greeter.finder
        self._dht = Unpaused(dht, greeter.prove)
        named = map(PeerAddress.parse, config.bootstrap)
        self.given = tuple(address for address in named if address.peer != greeter.peer_id)  # one list for all nodes
        self.refusal: SwarmError | None = None
        """Why a given peer that we met does not take us: another swarm, or no common version. None = no such word."""
        self._sources = Sources(
            given=self.given,
            remembered=self._finder.remembered,
            say=self._finder.say,
            may_join=lambda number: self._finder.may_join(config.swarm, number),
            has_lan=self._finder.has_lan and not self.given,
            check=greeter.prove,
        )
        self._joiner = Joiner(self._dht, self._sources, self._on_join)
        self._has_met = False

    async def keep_joined(self) -> None:
        """Until cancelled."""
        await self._joiner.run()

    async def joined(self, timeout_s: float) -> None:
        """Returns once a peer has answered; PeerUnreachableError if none does in time.

        A node that was given none returns within NEIGHBOUR_S of being able to hear neighbours, alone or not: there may be no other node
        yet, and it goes on looking.
        """
        if self.given or self._config.client_mode:
            return await self._joiner.joined(timeout_s)
        if self._finder.has_lan:
            await self._finder.can_hear()
        await self._joiner.settled(min(timeout_s, NEIGHBOUR_S))

    async def rejoin(self) -> None:
        """Our daemon has been started again: join by every peer that we know of, all at once; if we have not met any, as at the start."""
        if not self._joiner.has_joined:
            return self._joiner.ask_now()
        async with asyncio.TaskGroup() as joins:
            for address in dict.fromkeys((*self.given, *self._finder.remembered())):
                joins.create_task(self._try(address))

    async def _try(self, address: PeerAddress) -> None:
        with contextlib.suppress(SwarmError):  # silent, or it does not take us
            await self._dht.join(address)

    async def tell_and_hear_neighbours(self, announced: Callable[[], tuple[str, ...]]) -> None:
        """A node announces itself, and listens if no peer was named.

        A client listens only if no peer was named and no remembered one answers.

        announced: multiaddrs of our p2pd, without `/p2p/`, as they are now.
        """
        is_client = self._config.client_mode
        if not self._finder.has_lan or (is_client and self.given):
            return
        if is_client and self._finder.remembered():
            with contextlib.suppress(PeerUnreachableError):
                return await self._joiner.joined(_REMEMBERED_FIRST_S)
        heard = None if self.given else self._sources.neighbours.hear
        await self._finder.run_lan(tuple if is_client else announced, heard)

    async def _on_join(self, met: Met | None, text: str) -> None:
        is_first = not (self._has_met or self.given)  # known peers may all have left since: `Peer.alone` says it
        log.log(logging.INFO if met or is_first else logging.WARNING, "%s", text)
        self._has_met = self._has_met or met is not None
        if met:
            if met.kind == "given":
                await self._greet_given()
            if self.refusal is None:
                self._finder.note_answering(met.answered)
            self._finder.write_down(met.failed)
        if self._config.on_join:
            self._config.on_join(met is not None, text)

    async def _greet_given(self) -> None:
        """Check at once whether we are in the right swarm. A peer whose gRPC is elsewhere says nothing here, and that is fine; one that
        refuses us counts only if no other takes us."""

        async def greet(address: PeerAddress) -> SwarmError | None:
            try:
                await self._greeter.hello(address.peer, (address.grpc,))
            except SwarmError as error:
                return error
            return None

        answers = await asyncio.gather(*map(greet, self.given))
        refusals = [error for error in answers if error and is_refusal(error)]
        for error in refusals:
            log.warning("a given peer does not take us: %s", error)
        self.refusal = None if None in answers else next(iter(refusals), None)
