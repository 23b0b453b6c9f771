"""Asks other peers if they reach our announced addresses.

Only another peer can tell: it dials us and says what it found (`dial_back.py`). It dials the address that our call comes from and
no other, so a name is resolved here, and a peer whose calls leave from another address than it announces stays unverified.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Callable, MutableSequence, Sequence

from protocols import services
from protocols.errors import SwarmError
from protocols.hello import DialBack, DialBackReply
from protocols.ids import PeerId
from swarm.dht.address import host_port
from swarm.directory.directory import Directory
from swarm.rpc import ChannelPool, tls

log = logging.getLogger(__name__)

MAX_ASKED = 8
"""Peers that are asked in one attempt."""

ENOUGH = 3
"""Peers that dialled us in vain, after which none is asked any more."""

RESOLVE_S = 5.0
MAX_ADDRESSES = 8

VERIFY_FIRST_S, VERIFY_AGAIN_S = 1.0, 300.0
"""Pause between attempts to be dialled back: at first, and once one has succeeded."""

Place = tuple[PeerId, tuple[str, ...], bytes]
"""A peer, where its gRPC is, and its certificate (DER; empty = whatever proves the PeerID)."""


class Verifier:
    """Asks others to dial this peer: soon after there are some, then ever more seldom."""

    def __init__(
        self,
        pool: ChannelPool,
        directory: Directory,
        given: Sequence[Place],
        me: Callable[[], Place],
        shuffle: Callable[[MutableSequence[Place]], None] = random.shuffle,
    ) -> None:
        """given: peers that our user named, asked first. me: who we are and where, which may change while we run."""
        self._pool, self._directory, self._given, self._me, self._shuffle = pool, directory, given, me, shuffle
        self.reachable: bool | None = None
        """Has another peer dialled us back? None = none has tried yet."""

    async def run(self, has_neighbours: Callable[[], bool]) -> None:
        """Verify for as long as the peer lives; what is new in a verdict is announced at once."""
        pause_s = VERIFY_FIRST_S
        while True:
            if has_neighbours():
                with contextlib.suppress(SwarmError):  # the DHT is being started again
                    await self._verify_once()
            if self.reachable is not None:
                pause_s = VERIFY_AGAIN_S if self.reachable else min(2 * pause_s, VERIFY_AGAIN_S)
            await asyncio.sleep(pause_s)

    async def _verify_once(self) -> None:
        answer = await self.verify()
        if answer is None or answer == self.reachable:
            return
        self.reachable = answer
        if not answer:
            _, addresses, _ = self._me()
            log.warning("other peers cannot dial us at %s: open the port, or pass --announce HOST:PORT", ", ".join(addresses))
        await self._directory.refresh()

    async def verify(self) -> bool | None:
        """Ask now, and return what `ask` finds; `reachable` stays as it is."""
        others = await self._others()
        _, addresses, certificate = self._me()
        return await ask(self._pool, others, addresses, certificate)

    async def _others(self) -> list[Place]:
        """Peers that may dial us back: the given ones, then those who announce something in our swarm, in any order."""
        found: dict[PeerId, Place] = {}
        for model in list(await self._directory.models())[:2]:
            for record in (await self._directory.snapshot(model)).peers:
                found[record.peer] = (record.peer, record.addresses, record.certificate)
        others = [place for place in found.values() if place[0] not in {given[0] for given in self._given}]
        self._shuffle(others)  # PeerIDs can be ground: the first of an order would always be the same few
        return [place for place in (*self._given, *others) if place[0] != self._me()[0]]


async def ask(pool: ChannelPool, others: Sequence[Place], addresses: tuple[str, ...], certificate: bytes) -> bool | None:
    """Let others dial us at `addresses`: True if one reached us, False if none of those who tried did, None if no peer tried.

    A peer that refuses has not tried: it sees our calls come from another address, or is busy.
    """
    request = DialBack(addresses=await resolved(addresses), certificate=certificate)
    num_failed = 0
    for peer, places, theirs in others[:MAX_ASKED]:
        with contextlib.suppress(SwarmError):
            channel = await pool.channel(peer, places, theirs)
            reply = DialBackReply.parse(await channel.unary(services.DIAL_BACK, request.encode()))
            if set(reply.reachable) & set(request.addresses):
                return True
            num_failed += 1
        if num_failed == ENOUGH:
            break
    return False if num_failed else None


async def resolved(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """The same with each name as the IP addresses that it stands for. A name that does not resolve is left out."""
    found: dict[str, None] = {}
    for address in addresses:
        host, port = tls.split_address(address)
        found |= dict.fromkeys(host_port(ip, port) for ip in await _ips(host, port))
    return tuple(found)[:MAX_ADDRESSES]


async def _ips(host: str, port: int) -> list[str]:
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    try:
        async with asyncio.timeout(RESOLVE_S):
            entries = await asyncio.get_running_loop().getaddrinfo(host, port)
    except (OSError, TimeoutError):
        return []
    return [str(place[0]) for *_, place in entries]
