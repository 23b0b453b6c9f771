"""A peer that only asks, by gRPC alone: an identity, connections and the directory as others tell it. No DHT, no hivemind.

    async with ThinPeer(("/ip4/…/p2p/…",), swarm="public") as peer:
        snapshot = await peer.directory.snapshot("tiny")

It has the face of `swarm.peer.Peer` that sessions need, at a hundredth of its start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Self

from protocols import services
from protocols.errors import BadRequestError, ConfigError, PeerUnreachableError, ProtocolVersionError, SwarmError
from protocols.hello import Hello, agree, check_swarm
from protocols.ids import PeerId
from swarm import keys
from swarm.dht.address import PeerAddress
from swarm.directory.remote import RemoteDirectory, Source
from swarm.rpc.pool import ChannelPool

log = logging.getLogger(__name__)

MEET_S = 5.0
"""Wait for the first of the given peers to say hello."""


class ThinPeer:
    """For as long as the context lasts. Entering meets a given peer; PeerUnreachableError where none answers."""

    def __init__(self, bootstrap: Sequence[str], swarm: str = "public") -> None:
        """bootstrap: multiaddrs of any peers; their gRPC is one port higher, as by default."""
        if not bootstrap:
            raise ConfigError("no peer to ask: expected the address of any node of the swarm; `swarm node` prints its own")
        self._given = [PeerAddress.parse(address) for address in bootstrap]
        self._swarm = swarm
        self.identity = keys.fresh().identity
        self.peer_id = self.identity.peer_id
        self.pool = ChannelPool(self.identity)
        sources = [Source(peer=one.peer, addresses=(one.grpc,), is_given=True) for one in self._given]
        self.directory = RemoteDirectory(swarm, self.pool, sources)

    async def __aenter__(self) -> Self:
        try:
            await self._meet()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of every connection."""
        await self.directory.close()
        await self.pool.close()

    async def _meet(self) -> None:
        """Return when one given peer has said hello. Of another swarm, or with no common version, is said at once."""
        tasks = [asyncio.create_task(self.hello(one.peer, (one.grpc,))) for one in self._given]
        failures: list[str] = []
        try:
            async with asyncio.timeout(MEET_S):
                for answer in asyncio.as_completed(tasks):
                    try:
                        await answer
                        return
                    except (BadRequestError, ProtocolVersionError):
                        raise
                    except SwarmError as error:
                        failures.append(str(error))
        except TimeoutError:
            failures.append(f"no answer within {MEET_S:.0f} s")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise PeerUnreachableError(f"no peer of the swarm answers: {'; '.join(failures)}; check --peer, and that it runs")

    async def hello(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> Hello:
        """Ask a peer who it is. Raises where it is of another swarm or speaks no common version."""
        channel = await self.pool.channel(peer, addresses, certificate)
        mine = Hello(software="murmuration (thin)", swarm=self._swarm)
        theirs = Hello.parse(await channel.unary(services.HELLO, mine.encode()))
        agree(mine, theirs)
        check_swarm(mine, theirs)
        return theirs
