"""Real members of a DHT on loopback, several in one process.

Importing hivemind takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator

from protocols.directory import belongs
from protocols.identity import from_seed
from swarm.clock import SYSTEM, Clock
from swarm.dht.address import PeerAddress
from swarm.dht.node import Dht
from swarm.dht.protocol import Rules
from swarm.peer.keys import Keys


@contextlib.asynccontextmanager
async def members(count: int, swarm: str = "", clock: Clock = SYSTEM) -> AsyncIterator[list[Dht]]:
    """`count` full members; each has joined by the first. swarm: they keep what belongs to it; "" = anything that is signed."""
    async with contextlib.AsyncExitStack() as stack:
        found: list[Dht] = []
        for _ in range(count):
            found.append(await stack.enter_async_context(member(swarm=swarm, clock=clock)))
            if len(found) > 1:
                await found[-1].join(address_of(found[0]))
        yield found


@contextlib.asynccontextmanager
async def member(*, client_mode: bool = False, swarm: str = "", clock: Clock = SYSTEM) -> AsyncIterator[Dht]:
    keys = Keys(identity=from_seed(os.urandom(32)), certificate=None, path=None)
    rules = Rules(belongs=functools.partial(belongs, swarm)) if swarm else Rules()
    listen = None if client_mode else ("127.0.0.1", 0)
    dht = Dht(keys.identity, keys.file, listen, client_mode=client_mode, rules=rules, clock=clock)
    await dht.start()
    try:
        yield dht
    finally:
        await dht.stop()


def address_of(dht: Dht) -> PeerAddress:
    return PeerAddress.parse(f"{dht.addresses[0]}/p2p/{dht._identity.peer_id}")
