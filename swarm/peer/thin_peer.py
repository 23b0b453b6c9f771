"""A peer that only asks, by gRPC alone.

An identity, connections and the directory as others tell it. No DHT, no hivemind.

    async with ThinPeer(("/ip4/…/p2p/…",), swarm="public") as peer:
        snapshot = await peer.directory.snapshot("tiny")

It has the face of `swarm.peer.peer.Peer` that sessions need, at a hundredth of its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Self

from protocols.errors import PeerUnreachableError, SwarmError
from protocols.hello import Hello
from protocols.ids import PeerId
from protocols.words import few
from swarm import awake
from swarm.access_lists import keep_reading
from swarm.dht.address import PeerAddress
from swarm.directory.remote import RemoteDirectory
from swarm.directory.sources import Source
from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig, Finder, given_are_silent
from swarm.meeting.entering import ANYBODY, Entry
from swarm.meeting.joining import is_refusal
from swarm.meeting.neighbours import MAX_ASKED, Neighbours
from swarm.peer import keys
from swarm.peer.greeter import Greeter
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

MEET_S = 5.0
"""Wait for the first of the given peers to say hello."""

LAN_S = 5.0
"""Wait for a neighbour; mDNS takes 0.8 to 1.6 s."""


NONE_NAMED = "name a node: --peer ADDRESS, which `swarm node` and `swarm up` print, or --join INVITATION"
_MAX_FAILURES = 8


class ThinPeer(Greeter):
    """For as long as the context lasts. Entering meets a peer; PeerUnreachableError if none answers."""

    def __init__(
        self, bootstrap: Sequence[str], swarm: str = "public", find: FindConfig = NOBODY_ELSE, entry: Entry = ANYBODY
    ) -> None:
        """bootstrap: multiaddrs of any peers; their gRPC is one port higher, as by default. find: which peers to ask if none of them
        answers. entry: the key of a private swarm, who may be asked, and who we are. ConfigError if there is no peer to ask."""
        find.check(bootstrap)
        super().__init__(Hello(software="murmuration (thin)", swarm=swarm), entry)
        self._given = [PeerAddress.parse(address) for address in bootstrap]
        self._swarm, self._entry = swarm, entry
        self._tasks = Tasks()
        self._refusal: SwarmError | None = None
        """Why a given peer does not take us, and perhaps no other does."""
        self._held = contextlib.ExitStack()
        identity = self._held.enter_context(keys.of_client(entry.identity)).identity
        self.start_asking(identity, Finder(find, identity.peer_id, None))
        self.directory = self._directory_of(self._given)

    async def __aenter__(self) -> Self:
        try:
            await self._meet()
        except BaseException:
            await self.close()
            raise
        self._tasks.keep(self.finder.keep_writing_down(), "known peers")
        if self._entry.changes:
            reading = keep_reading(self._entry.lists, self.gate, self.pool.forget_refused, self.finder.say)
            self._tasks.keep(reading, "lists of peers")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the tasks, write down who has answered (the given peers may be gone the next time), and close every connection.

        If one part fails, the others are done all the same.
        """
        async with contextlib.AsyncExitStack() as parts:  # the last one comes first
            parts.callback(self._held.close)
            parts.push_async_callback(self.pool.close)
            parts.push_async_callback(self.directory.close)
            parts.callback(self.finder.write_down)
            parts.push_async_callback(self._tasks.stop)

    def _may_be_seen(self, peer: PeerId) -> bool:
        return self.gate.access.may_be_seen(peer)

    async def _meet(self) -> None:
        """Return when one peer has said hello: a given one, else one of the last known, else a neighbour."""
        failures: list[str] = []
        if not self._given or not await self._greet(self._given, failures):
            remembered = self.finder.remembered()
            if self._given and remembered:
                self.finder.say(given_are_silent(len(self._given), few(failures), len(remembered)))
            if not (remembered and await self._greet(remembered, failures)) and not await self._greet_neighbours(failures):
                hint = "check --peer, and that it runs" if self._given else NONE_NAMED
                raise self._refusal or PeerUnreachableError(f"no peer of the swarm answers: {few(failures)}; {hint}")
        self.finder.write_down()

    async def _greet(self, addresses: Sequence[PeerAddress], failures: list[str]) -> bool:
        """Ask all at once; True with the first that answers."""
        tasks = [asyncio.create_task(self._check(address)) for address in addresses]
        try:
            async with awake.timeout(MEET_S):
                for answer in asyncio.as_completed(tasks):
                    try:
                        self._found(await answer, addresses)
                        return True
                    except SwarmError as error:
                        failures.append(str(error))
                        if addresses is self._given and is_refusal(error):
                            self._refusal = error
        except TimeoutError:
            failures.append(f"no answer within {MEET_S:.0f} s")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return False

    async def _greet_neighbours(self, failures: list[str]) -> bool:
        """Those that are heard within LAN_S; True with the first that is ours, if the user does not say no."""
        if not self.finder.has_lan or self._given:
            return False
        neighbours = Neighbours()
        listening = asyncio.create_task(self.finder.run_lan(tuple, neighbours.hear))
        try:
            await self.finder.can_hear()
            async with asyncio.timeout(LAN_S):
                address = await self._first_of(neighbours, failures)
        except TimeoutError:
            failures.append(f"no neighbour within {LAN_S:.0f} s")
            return False
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        self._found(address, [address])
        if not await self.finder.may_join(self._swarm, 1):
            failures.append("a neighbour was heard, and the answer was not to join it")
            return False
        return True

    async def _first_of(self, neighbours: Neighbours, failures: list[str]) -> PeerAddress:
        """The first neighbour of our swarm; each is asked as it is heard, so that a silent one delays no other."""
        asking: set[asyncio.Task[PeerAddress]] = set()
        try:
            while True:
                neighbours.news.clear()
                fresh = neighbours.to_ask((), only_new=True) if len(asking) < MAX_ASKED else []
                asking |= {asyncio.create_task(self._check(one)) for one in fresh}
                news = asyncio.create_task(neighbours.news.wait())
                try:
                    await asyncio.wait({news, *asking}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                for task in [task for task in asking if task.done()]:
                    asking.discard(task)
                    try:
                        return task.result()
                    except SwarmError as error:
                        failures.append(str(error))
                        del failures[_MAX_FAILURES:]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _found(self, address: PeerAddress, asked: Sequence[PeerAddress]) -> None:
        if asked is not self._given:
            self.directory = self._directory_of(sorted(asked, key=lambda one: one != address))  # others may be dead
        self.finder.note_answering([address])

    async def _check(self, address: PeerAddress) -> PeerAddress:
        if address in self._given:
            await self.hello(address.peer, (address.grpc,))
        else:
            await self.prove(address)
        return address

    def _directory_of(self, asked: Sequence[PeerAddress]) -> RemoteDirectory:
        return RemoteDirectory(self._swarm, self.pool, _sources(asked), may_be_seen=self._may_be_seen, has_met=self.has_met)


def _sources(addresses: Sequence[PeerAddress]) -> list[Source]:
    """One for each peer, with all of its addresses: a node that was started again may have another port than the one that is remembered."""
    found: dict[PeerId, list[str]] = {}
    for one in addresses:
        found.setdefault(one.peer, []).append(one.grpc)
    return [Source(peer=peer, addresses=tuple(dict.fromkeys(own)), is_given=True) for peer, own in found.items()]
