"""What a node announces: one record, of all models that it serves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from node.config import NodeConfig
from node.joining import record_of
from protocols.errors import ConfigError
from protocols.hosted import Hosted
from protocols.ids import ModelId
from protocols.records import MAX_ROUND_TRIPS, PeerRecord
from protocols.roles import Role
from swarm.peer.peer import Peer


class Announced(Protocol):
    """One model's part of the record (`presence.py`)."""

    model: ModelId

    @property
    def is_serving(self) -> bool: ...

    def hosted(self) -> list[Hosted]: ...

    @property
    def roles(self) -> tuple[Role, ...]: ...

    async def stop_serving(self) -> None: ...


class Announcement:
    """Made once; every `Presence` puts its part in, and says when it has changed."""

    def __init__(self, config: NodeConfig, peer: Peer) -> None:
        self._config, self._peer, self._parts = config, peer, list[Announced]()
        self.is_paused = self.is_leaving = False
        """As an operator has ordered: no new sessions, or the end of this node in some seconds."""

    def add(self, part: Announced) -> None:
        """From now on the record tells of this model. ConfigError if it does already: calls name models, not hosts."""
        if any(other.model == part.model for other in self._parts):
            raise ConfigError(f"this node serves {part.model.name}@{part.model.digest[:12]} already: name each model once")
        self._parts.append(part)

    def record(self) -> PeerRecord:
        """This node now."""
        trips = tuple(self._peer.round_trips_ms.items())[-MAX_ROUND_TRIPS:]
        state = "serving" if any(part.is_serving for part in self._parts) else "joining"
        state = "draining" if self.is_leaving else state
        hosted = [one for part in self._parts for one in part.hosted()]
        return replace(
            record_of(self._config, self._peer),
            state=state,
            reachable=self._peer.reachable,
            round_trips=trips,
            hosted=tuple(replace(one, state="" if one.state == state else one.state) for one in hosted),
            roles=tuple(role for part in self._parts for role in part.roles),
            paused=self.is_paused and not self.is_leaving,
        ).fitted()

    async def tell(self) -> None:
        """Push the record as it is now, under the name of every model."""
        await self._peer.directory.announce(self.record, tuple(part.model.name for part in self._parts))

    async def stop_serving(self) -> None:
        """Finish running steps of every model."""
        await asyncio.gather(*(part.stop_serving() for part in self._parts))

    async def withdraw(self) -> None:
        """Take it back, if there was one."""
        await self._peer.directory.withdraw()
