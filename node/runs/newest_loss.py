"""The newest loss of a run, as its trainers tell it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from protocols import services
from protocols.errors import SwarmError
from protocols.ids import ModelId
from protocols.journal import JournalPart, JournalRequest, NotedVersion
from protocols.records import PeerRecord
from swarm.rpc.pool import ChannelPool, PeerChannel

ASK_S = 3.0
"""How long a trainer may take."""

BACK = 32
"""Notes that are looked through for a loss, from the newest on: between two versions there may be events."""

MAX_TRAINERS = 4
"""That are asked, one after the other."""


async def newest_loss(pool: ChannelPool, run: ModelId, records: Sequence[PeerRecord]) -> float | None:
    """Nats per token of the newest version with a loss, by the first trainer that tells one; None = none does."""
    trainers = [record for record in records if any(role.kind == "trainer" for role in record.roles_of(run.digest))]
    for record in sorted(trainers, key=lambda one: one.peer)[:MAX_TRAINERS]:
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(ASK_S):
                channel = await pool.channel(record.peer, record.addresses, record.certificate)
                if (loss := await _loss(channel, run)) is not None:
                    return loss
    return None


async def _loss(channel: PeerChannel, run: ModelId) -> float | None:
    first = await _part(channel, JournalRequest(run=run))
    part = first
    if first.last < first.newest:
        part = await _part(channel, JournalRequest(run=run, journal=first.journal, after=max(first.last, first.newest - BACK)))
    found = [note.loss for note in (*first.notes, *part.notes) if isinstance(note, NotedVersion) and note.loss is not None]
    return found[-1] if found else None


async def _part(channel: PeerChannel, request: JournalRequest) -> JournalPart:
    return JournalPart.parse(await channel.unary(services.JOURNAL, request.encode(), ASK_S))
