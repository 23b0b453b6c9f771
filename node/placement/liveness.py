"""Detects nodes that died before their record expired (up to RECORD_LIFE_S).

Each look of placement says hello to the peers that matter. A peer that does not answer two times running counts as gone until it answers
again. In a small swarm all peers matter. In a large one a node watches those whose blocks it would have to take over, so that each peer is
dialled only by the few nodes that would act on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from functools import partial

from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from swarm.asking import Ping, answers, is_there
from swarm.clock import SYSTEM, Clock
from swarm.placement.members import Member
from swarm.placement.rebalance import plan

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Pause before a peer that did not answer is asked once more."""

GREETED_S = 30.0
GREETING_S = 6.0
"""Seconds for which a newcomer remembers who answers it, and for all its hellos of one look together."""

SMALL_SWARM = 32
"""Up to so many peers, all are asked; beyond it, those whose blocks we would take over, and so many at most."""


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
    return set(itertools.islice(ours, SMALL_SWARM))


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
        found = await asyncio.gather(*(is_there(self._ping, record) for record in records))
        return [record for record, is_alive in zip(records, found, strict=True) if not is_alive]


class Greeted:
    """Who answers a newcomer, which decides by what is hosted now: asked once each, in random order, and remembered for GREETED_S."""

    def __init__(self, ping: Ping, clock: Clock = SYSTEM) -> None:
        self._ping, self._now_s = ping, clock.now_s
        self._found: dict[PeerId, tuple[float, bool]] = {}

    async def answering(self, records: Sequence[PeerRecord]) -> list[PeerRecord]:
        """Those of `records` that answer, within GREETING_S for all together; who was not reached in that time does not."""
        now_s = self._now_s()
        self._found = {peer: found for peer, found in self._found.items() if now_s - found[0] < GREETED_S}
        due = [record for record in records if record.peer not in self._found]
        random.shuffle(due)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GREETING_S), aclosing(answers(due, partial(is_there, self._ping))) as replies:
                async for record, is_alive in replies:
                    self._found[record.peer] = now_s, is_alive
        return [record for record in records if self._found.get(record.peer, (0.0, False))[1]]
