"""Saying hello: two peers learn whether they are in one swarm and speak a common version; a full and a thin peer do it alike."""

from __future__ import annotations

from protocols import services
from protocols.hello import Hello, agree, check_swarm
from protocols.identity import Identity
from swarm.dht.address import PeerAddress
from swarm.rpc.pool import ChannelPool, PeerChannel


async def ask(channel: PeerChannel, mine: Hello) -> Hello:
    """Their hello; BadRequestError where they are of another swarm, ProtocolVersionError where there is no common version."""
    theirs = Hello.parse(await channel.unary(services.HELLO, mine.encode()))
    agree(mine, theirs)
    check_swarm(mine, theirs)
    return theirs


def answer(mine: Hello, request: bytes) -> bytes:
    """What we say to a hello; the errors of `ask`, which the asker is then told."""
    theirs = Hello.parse(request)
    agree(mine, theirs)
    check_swarm(mine, theirs)
    return mine.encode()


async def prove(identity: Identity, address: PeerAddress, mine: Hello) -> None:
    """Let a peer that was not named by our user prove who it is; the errors of `ask`, or of dialling it.

    The connections are its own: a liar's address must not stand in the way of the peer whose name it uses.
    """
    pool = ChannelPool(identity)
    try:
        await ask(await pool.channel(address.peer, (address.grpc,)), mine)
    finally:
        await pool.close()
