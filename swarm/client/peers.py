"""The peers that models share: one per process and swarm.

A peer lives as long as one model needs it.

A swarm is one DHT under one name. Models that name a bootstrap address in common, or none, share a peer; models that name other
addresses are in another DHT, even if both call it `public`.
Everything here runs on the background loop; `swarm.peer.peer`, and hivemind with it, is imported when the first peer is needed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.client.loop import BackgroundLoop
from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig
from swarm.meeting.entering import ANYBODY, Entry

if TYPE_CHECKING:
    from swarm.peer.peer import Peer
    from swarm.peer.thin_peer import ThinPeer

    AnyPeer = Peer | ThinPeer


@dataclass(eq=False, slots=True)
class SharedPeer:
    """A client's peer, and how many models hold it. `holders` reaches 0 = it ends."""

    swarm: str
    bootstrap: set[str]
    find: FindConfig
    entry: Entry = ANYBODY
    thin: bool = False
    """Asks by gRPC alone: no DHT, no hivemind."""
    holders: int = 0
    started: asyncio.Future[AnyPeer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    unneeded: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def live(self) -> None:
        """The peer's whole life is in this one task: it must end where it began."""
        try:
            async with self._peer() as peer:
                self.started.set_result(peer)
                await self.unneeded.wait()
        except BaseException as error:
            if self.started.done():
                raise
            self.started.set_exception(error)
            self.started.exception()  # waiting callers get it; read once, so that asyncio does not warn if none waits

    def _peer(self) -> AnyPeer:
        bootstrap = tuple(sorted(self.bootstrap))
        self.find.check(bootstrap)
        if self.thin:
            from swarm.peer.thin_peer import ThinPeer

            return ThinPeer(bootstrap, self.swarm, self.find, self.entry)
        from swarm.peer.config import PeerConfig
        from swarm.peer.peer import Peer  # hivemind takes seconds and 30 MB; a caller who never connects needs neither

        return Peer(
            PeerConfig(swarm=self.swarm, bootstrap=bootstrap, find=self.find, listen=None, client_mode=True, entry=self.entry)
        )


class PeerPool:
    """All shared peers of this process."""

    def __init__(self, loop: BackgroundLoop) -> None:
        self._shared: list[SharedPeer] = []
        loop.at_exit(self.end)

    async def acquire(
        self,
        swarm: str,
        bootstrap: tuple[str, ...],
        find: FindConfig = NOBODY_ELSE,
        thin: bool = False,
        entry: Entry = ANYBODY,
    ) -> SharedPeer:
        """A started peer of that swarm; `release` it once. find: whom else to ask. Raises what its start raises."""
        alike = (one for one in self._shared if one.thin == thin and one.entry == entry)
        shared = next((one for one in alike if self._is_same(one, swarm, bootstrap)), None)
        if shared is None:
            shared = SharedPeer(swarm, set(bootstrap), find, entry, thin)
            self._shared.append(shared)
            shared.task = asyncio.create_task(shared.live())
        shared.holders += 1
        try:
            await asyncio.shield(shared.started)
        except BaseException:
            self.release(shared)
            raise
        return shared

    @staticmethod
    def _is_same(shared: SharedPeer, swarm: str, bootstrap: tuple[str, ...]) -> bool:
        same_dht = not bootstrap or not shared.bootstrap.isdisjoint(bootstrap)
        return shared.swarm == swarm and same_dht and not shared.unneeded.is_set()

    def release(self, shared: SharedPeer) -> None:
        """One model less needs it; with the last, the peer ends."""
        shared.holders -= 1
        if shared.holders == 0 and shared in self._shared:
            self._shared.remove(shared)
            shared.unneeded.set()

    async def end(self) -> None:
        """End every peer and wait for it."""
        tasks = [shared.task for shared in self._shared if shared.task is not None]
        for shared in self._shared:
            shared.unneeded.set()
        self._shared = []
        await asyncio.gather(*tasks, return_exceptions=True)
