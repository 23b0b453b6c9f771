"""Who is gone although its record lives on: a node that dies without a word is listed for up to RECORD_LIFE_S.

Each look of placement says hello to those who matter; who does not answer twice in a row counts as gone until it answers again.
In a small swarm everybody matters. In a large one a node watches those whose blocks it would have to take over, so that each
peer is dialled by the few who would act on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from swarm.placement.members import Member
from swarm.placement.rebalance import plan

log = logging.getLogger(__name__)

HELLO_S = 2.0
AGAIN_S = 1.0
"""Pause before a peer that did not answer is asked once more."""

SMALL_SWARM = 32
"""Up to so many peers, everybody is asked; beyond it, those whose blocks we would take over, and so many at most."""

Ping = Callable[[PeerRecord], Awaitable[object]]


def watched(me: PeerId, members: Sequence[Member], num_blocks: int) -> set[PeerId]:
    """The peers to ask in one look. Pure."""
    others = [member.peer for member in members if member.peer != me]
    if len(others) <= SMALL_SWARM:
        return set(others)
    holders: dict[int, list[PeerId]] = {}
    for member in members:
        for block in range(member.span.start, min(member.span.stop, num_blocks)):
            holders.setdefault(block, []).append(member.peer)
    alone = sorted({peers[0] for peers in holders.values() if len(peers) == 1} - {me})
    ours = (peer for peer in alone if me in plan([member for member in members if member.peer != peer], num_blocks))
    return {peer for peer, _number in zip(ours, range(SMALL_SWARM), strict=False)}


class Liveness:
    """Asks, and remembers who did not answer."""

    def __init__(self, ping: Ping) -> None:
        self._ping = ping
        self.gone: frozenset[PeerId] = frozenset()

    async def check(self, records: Iterable[PeerRecord]) -> frozenset[PeerId]:
        """Those of `records` that do not answer, asked twice AGAIN_S apart. Takes at most 2 * HELLO_S + AGAIN_S."""
        asked = list(records)
        silent = await self._silent(asked)
        if any(record.peer not in self.gone for record in silent):
            await asyncio.sleep(AGAIN_S)
            silent = await self._silent(silent)
        found = frozenset(record.peer for record in silent)
        for peer in found - self.gone:
            log.info("peer %s does not answer: its blocks count as unserved", short_peer(peer))
        self.gone = found
        return found

    async def _silent(self, records: Sequence[PeerRecord]) -> list[PeerRecord]:
        answers = await asyncio.gather(*map(self._answers, records))
        return [record for record, is_alive in zip(records, answers, strict=True) if not is_alive]

    async def _answers(self, record: PeerRecord) -> bool:
        try:
            async with asyncio.timeout(HELLO_S):
                await self._ping(record)
        except (SwarmError, TimeoutError):
            return False
        return True
