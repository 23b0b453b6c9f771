"""Can others reach a peer at the addresses that it announces? Only another peer can tell: it dials them, and says what it found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from protocols import services
from protocols.errors import OverloadedError, PeerUnreachableError, SwarmError, UnauthenticatedError
from protocols.hello import DialBack, DialBackReply
from protocols.ids import PeerId
from swarm.rpc import Call, ChannelPool, tls

DIAL_BACK_S = 3.0
MAX_DIAL_BACKS = 8
"""Dials for others at once."""

MAX_ASKED = 3

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
