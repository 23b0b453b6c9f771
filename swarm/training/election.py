"""Which trainer coordinates a run.

Nothing is voted on: a trainer asks the others. If one coordinates, it works for that one; if none does, the one with the lowest PeerID
begins to. Two that coordinate at once find each other within LOOK_S, and the higher one works for the lower one from then on. Meanwhile
nothing counts twice: that is the ledgers' work, not the coordinator's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocols import services
from protocols.errors import PeerUnreachableError, SwarmError
from protocols.ids import ModelId, PeerId, short_peer
from protocols.leases import LeaseAnswer, LeaseRequest
from protocols.records import PeerRecord
from swarm.asking import answers
from swarm.rpc.pool import ChannelPool
from swarm.training.known_records import Directory

log = logging.getLogger(__name__)

ASK_S = 1.5
"""Seconds in which a trainer has to say for which one it works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What another trainer has said."""

    peer: PeerId
    coordinator: PeerId | None
    """Itself, the one that it works for, or None."""

    @property
    def coordinates(self) -> bool:
        return self.coordinator == self.peer


def elect(me: PeerId, heard: Iterable[Heard]) -> PeerId | None:
    """Whom to work for; `me`: coordinate. None: wait, a trainer with a lower PeerID is there and will coordinate in a moment."""
    others = list(heard)
    if coordinating := [one.peer for one in others if one.coordinates]:
        return min(coordinating)
    return me if me <= min((one.peer for one in others), default=me) else None


def gives_way(me: PeerId, heard: Iterable[Heard]) -> bool:
    """Does a coordinating trainer have to stop, since one with a lower PeerID coordinates, too?"""
    return any(one.coordinates and one.peer < me for one in heard)


class Trainers:
    """The other trainers of a run, by their records."""

    def __init__(self, run: ModelId, me: PeerId, directory: Directory, pool: ChannelPool) -> None:
        self.run, self._me, self._directory, self._pool = run, me, directory, pool
        self._records: dict[PeerId, PeerRecord] = {}

    async def look(self, request: LeaseRequest) -> list[Heard]:
        """Ask all whose records are in the directory, and those that were there before; those that answer."""
        found, is_read = await self._read()
        for record in found:
            if record.peer != self._me and any(role.kind == "trainer" for role in record.roles_of(self.run.digest)):
                self._records[record.peer] = record
        heard = []

        async def ask(peer: PeerId) -> LeaseAnswer | None:
            try:
                return await self.ask(peer, request, ASK_S)
            except (SwarmError, TimeoutError) as error:
                log.info("trainer %s of %s does not answer: %s", short_peer(peer), self.run.name, error)
                return None

        async for peer, answer in answers(tuple(self._records), ask):
            if answer is not None:
                heard.append(Heard(peer=peer, coordinator=answer.coordinator))
            elif is_read and all(record.peer != peer for record in found):
                del self._records[peer]
        return heard

    async def _read(self) -> tuple[Sequence[PeerRecord], bool]:
        """The records in the directory, and whether it could be asked: not while our DHT is being started again."""
        try:
            return (await self._directory.snapshot(self.run.name)).peers, True
        except PeerUnreachableError as error:
            log.warning("the directory cannot be asked for the trainers of %s now: %s", self.run.name, error)
            return (), False

    async def ask(self, peer: PeerId, request: LeaseRequest, timeout_s: float) -> LeaseAnswer:
        """One trainer that `look` has found. SwarmError or TimeoutError if it does not answer."""
        record = self._records.get(peer)
        if record is None:
            raise PeerUnreachableError(f"trainer {short_peer(peer)} has gone")
        async with asyncio.timeout(timeout_s):
            channel = await self._pool.channel(peer, record.addresses, record.certificate)
            return LeaseAnswer.parse(await channel.unary(services.LEASE, request.encode(), timeout_s))
