"""Lets the stages of a run serve some of its versions.

Every `serve_every` versions, all stages are told that all of them have stepped, and the chains of all units. Each has kept a copy of its
units at that version (`publishing.py`).
"""

from __future__ import annotations

import asyncio
import logging

from protocols import services
from protocols.errors import SwarmError
from protocols.ids import short_peer
from protocols.records import PeerRecord
from protocols.run_status import Publish, Published
from protocols.runs import RunSpec
from swarm.rpc.pool import ChannelPool
from swarm.training.coordinator import Step
from swarm.training.members import Members

log = logging.getLogger(__name__)

PUBLISH_S = 10.0
"""Seconds in which a stage has to say that it serves a version, or is about to."""


class Publisher:
    """Of one run, at the trainer that closes its versions."""

    def __init__(self, spec: RunSpec, members: Members, pool: ChannelPool) -> None:
        self._spec, self._members, self._pool = spec, members, pool

    async def after(self, step: Step) -> None:
        """Publish this version, if it is one of those. A stage that cannot is logged, and serves what it has."""
        every = self._spec.serve_every
        if every and step.version % every == 0:
            message = Publish(run=self._members.run, version=step.version, chains=step.chains).encode()
            await asyncio.gather(*(self._tell(stage.record, step.version, message) for stage in self._members.stages))

    async def _tell(self, record: PeerRecord, version: int, message: bytes) -> None:
        try:
            channel = await self._pool.channel(record.peer, record.addresses, record.certificate)
            Published.parse(await channel.unary(services.PUBLISH, message, PUBLISH_S))
        except SwarmError as error:
            log.warning("version %d is not served by stage %s: %s", version, short_peer(record.peer), error)
