"""Hello: do two peers share a swarm and a version?

A full and a thin peer do it alike.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from protocols import services
from protocols.hello import Hello, agree, check_swarm
from protocols.identity import Identity
from swarm.access import Gate
from swarm.dht.address import PeerAddress
from swarm.meeting.clocks import Clocks
from swarm.rpc.pool import ChannelPool, PeerChannel


async def ask(channel: PeerChannel, mine: Hello, clocks: Clocks) -> tuple[Hello, float]:
    """Their hello, and its round trip in milliseconds, without the time to connect.

    BadRequestError if they are of another swarm, ProtocolVersionError if there is no common version.

    clocks: is told their time.
    """
    asked_at_s, began_s = clocks.now_s(), asyncio.get_running_loop().time()
    theirs = Hello.parse(await channel.unary(services.HELLO, replace(mine, time_s=asked_at_s).encode()))
    round_trip_ms = (asyncio.get_running_loop().time() - began_s) * 1e3
    clocks.note(channel.peer, asked_at_s, theirs.time_s)
    agree(mine, theirs)
    check_swarm(mine, theirs)
    return theirs, round_trip_ms


def answer(mine: Hello, request: bytes, now_s: float) -> bytes:
    """What we say to a hello at the time `now_s` of our clock; the errors of `ask`, which the asker is then told."""
    theirs = Hello.parse(request)
    agree(mine, theirs)
    check_swarm(mine, theirs)
    return replace(mine, time_s=now_s).encode()


async def prove(identity: Identity, gate: Gate, address: PeerAddress, mine: Hello, clocks: Clocks) -> None:
    """Let a peer that was not named by our user prove who it is; the errors of `ask`, or of dialling it.

    The connections are its own: a liar's address must not stand in the way of the peer whose name it uses.
    """
    pool = ChannelPool(identity, gate)
    try:
        await ask(await pool.channel(address.peer, (address.grpc,)), mine, clocks)
    finally:
        await pool.close()
