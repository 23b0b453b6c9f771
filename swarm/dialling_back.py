"""Can others reach a peer at the addresses that it announces? Only another peer can tell: it dials them, and says what it found."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from protocols import services
from protocols.errors import OverloadedError, PeerUnreachableError, SwarmError, UnauthenticatedError
from protocols.hello import DialBack, DialBackReply
from protocols.ids import PeerId
from swarm.directory.directory import Directory
from swarm.rpc import Call, ChannelPool, tls

log = logging.getLogger(__name__)

DIAL_BACK_S = 3.0
MAX_DIAL_BACKS = 8
"""Dials for others at once."""

MAX_ASKED = 3

VERIFY_FIRST_S, VERIFY_AGAIN_S = 1.0, 300.0
"""Pause between attempts to be dialled back: at first, and once one has succeeded."""

Place = tuple[PeerId, tuple[str, ...], bytes]
"""A peer, where its gRPC is, and its certificate (DER; empty = whatever proves the PeerID)."""


class DialBacks:
    """Answers those who ask to be dialled."""

    def __init__(self) -> None:
        self._num = 0
        self._callers: set[PeerId] = set()

    async def answer(self, request: bytes, call: Call) -> bytes:
        """Dial the caller, and nobody else: what answers there must prove the caller's PeerID."""
        asked = DialBack.parse(request)
        if call.peer in self._callers:
            raise OverloadedError("you are being dialled back here already: one at a time; ask another peer")
        if self._num >= MAX_DIAL_BACKS:
            raise OverloadedError(f"{MAX_DIAL_BACKS} peers are being dialled back here; ask another peer")
        self._num += 1
        self._callers.add(call.peer)
        try:
            results = await asyncio.gather(*(_is_at(address, call.peer) for address in asked.addresses))
        finally:
            self._num -= 1
            self._callers.discard(call.peer)
        reachable = tuple(address for address, found in zip(asked.addresses, results, strict=True) if found)
        reason = "" if len(reachable) == len(results) else "nobody proves your identity at the other addresses"
        return DialBackReply(reachable=reachable, reason=reason).encode()


class Verifier:
    """Asks others to dial this peer: soon after there are some, then ever more seldom."""

    def __init__(self, pool: ChannelPool, directory: Directory, given: Sequence[Place], me: Callable[[], Place]) -> None:
        """given: peers that our user named, asked first. me: who we are and where, which may change while we run."""
        self._pool, self._directory, self._given, self._me = pool, directory, given, me
        self.reachable: bool | None = None
        """Has another peer dialled us back? None = nobody has tried yet."""

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
        strangers = await self._strangers()
        _, addresses, certificate = self._me()
        return await ask(self._pool, strangers, addresses, certificate)

    async def _strangers(self) -> list[Place]:
        """Peers that may dial us back: the given ones, then those who announce something in our swarm."""
        found = {place[0]: place for place in self._given}
        for model in list(await self._directory.models())[:2]:
            for record in (await self._directory.snapshot(model)).peers:
                found[record.peer] = (record.peer, record.addresses, record.certificate)
        found.pop(self._me()[0], None)
        return list(found.values())


async def ask(pool: ChannelPool, others: Sequence[Place], addresses: tuple[str, ...], certificate: bytes) -> bool | None:
    """Let up to MAX_ASKED others dial us at `addresses`: True if one reached us, False if none did, None if nobody could be asked."""
    verdict = None
    for peer, places, theirs in others[:MAX_ASKED]:
        with contextlib.suppress(SwarmError):
            channel = await pool.channel(peer, places, theirs)
            request = DialBack(addresses=addresses, certificate=certificate)
            reply = DialBackReply.parse(await channel.unary(services.DIAL_BACK, request.encode()))
            if set(reply.reachable) & set(addresses):
                return True
            verdict = False
    return verdict


async def _is_at(address: str, peer: PeerId) -> bool:
    try:
        return tls.owner(await tls.fetch(address, DIAL_BACK_S)) == peer
    except (PeerUnreachableError, UnauthenticatedError):
        return False
