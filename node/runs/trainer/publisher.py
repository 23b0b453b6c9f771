"""Lets the stages of a run serve some of its versions.

For such a version (`RunSpec.is_served`), all stages are told that all of them have stepped, and the chains of all units. Each has kept a
copy of its units at that version (`publishing.py`). Nodes keep two published versions, so a fast run publishes no more often than every
PUBLISH_EVERY_S seconds: a session has at least that long, twice, until no node has its version any more.
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
from swarm.clock import SYSTEM, Clock
from swarm.rpc.pool import ChannelPool
from swarm.training.coordinator import Step
from swarm.training.members import Members

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 5.0
"""Seconds between two published versions, at least."""

PUBLISH_S = 10.0
"""Seconds in which a stage has to say that it serves a version, or is about to."""


class Publisher:
    """Of one run, at the trainer that closes its versions."""

    def __init__(
        self, spec: RunSpec, members: Members, pool: ChannelPool, clock: Clock = SYSTEM, every_s: float = PUBLISH_EVERY_S
    ) -> None:
        """every_s: at least so many seconds between two published versions, but for the run's last one."""
        self._spec, self._members, self._pool, self._clock, self._every_s = spec, members, pool, clock, every_s
        self._next_s = clock.now_s()

    def is_due(self, version: int) -> bool:
        """Is this version to be published now?"""
        is_time = self._clock.now_s() >= self._next_s or version == self._spec.batch.steps
        return is_time and self._spec.is_served(version)

    async def after(self, step: Step) -> None:
        """Publish this version, if it is due. A stage that cannot is logged, and serves what it has."""
        if self.is_due(step.version):
            self._next_s = self._clock.now_s() + self._every_s
            message = Publish(run=self._members.run, version=step.version, chains=step.chains).encode()
            await asyncio.gather(*(self._tell(stage.record, step.version, message) for stage in self._members.stages))

    async def _tell(self, record: PeerRecord, version: int, message: bytes) -> None:
        try:
            channel = await self._pool.channel(record.peer, record.addresses, record.certificate)
            Published.parse(await channel.unary(services.PUBLISH, message, PUBLISH_S))
        except SwarmError as error:
            log.warning("version %d is not served by stage %s: %s", version, short_peer(record.peer), error)
