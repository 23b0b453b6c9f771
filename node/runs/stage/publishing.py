"""Makes versions of a run what this node serves.

A stage keeps a copy of its units right after each step to a version that will be served. The trainer names such a version with the chains
of all units (`publish`), once all of them have stepped: the chain of the whole version is the hash of these, so all stages announce the
same `Weights`. Serving then changes as for any other weights (`node/hosting/replacing.py`): sessions end on the version that they began
with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from torch import Tensor

from node.hosting.replacing import Replacer
from node.training.run_units import RunUnits
from protocols.errors import BadRequestError, SwarmError, VersionMismatchError
from protocols.kept import chain_of
from protocols.run_status import Publish
from protocols.units import Blocks, Ends, Unit
from protocols.weights_id import Weights
from swarm.tasks import Tasks
from swarm.training.snapshot import PARAMETER, UnitSnapshot

log = logging.getLogger(__name__)


class Publishing:
    """Of one run at one node. All methods belong to one event loop."""

    def __init__(self, units: RunUnits, hosted: Blocks, replacer: Replacer) -> None:
        """hosted: the blocks of the host that serves them, as one unit."""
        self.hosted = hosted
        self._units, self._replacer = units, replacer
        self._kept: dict[Unit, UnitSnapshot] = {}
        self._tasks, self._newest = Tasks(), 0

    @property
    def served(self) -> tuple[int, ...]:
        """The version that new sessions get."""
        return (self._replacer.host.served.weights.version,)

    def keep(self, snapshot: UnitSnapshot) -> None:
        """A unit right after the step to a version that will be served."""
        self._kept[snapshot.unit] = snapshot

    def go_back(self, version: int) -> None:
        """The units were fetched: they are at this version now, and later ones that were published may come again with other numbers."""
        self._newest = min(self._newest, version)
        self._kept = {unit: snapshot for unit, snapshot in self._kept.items() if snapshot.version <= version}

    async def publish(self, message: Publish) -> int:
        """Begin to serve a version; the newest that is served, or is about to be. An older one than that changes nothing.

        VersionMismatchError: its numbers are not kept here (any more). BadRequestError: the chains are not those of our units.
        """
        if message.version <= self._newest:
            return self._newest
        for unit in self._units.states:
            kept = self._kept.get(unit)
            if kept is None or kept.version != message.version:
                raise VersionMismatchError(
                    f"version {message.version} of {unit} is not kept here: it cannot be served by this node"
                )
            if message.chains.get(unit) != kept.chain:
                raise BadRequestError(
                    f"the chain of {unit} at version {message.version} is another one here: it is not what others have"
                )
        self._newest = message.version
        weights = Weights(message.run, message.version, chain_of(message.chains))
        self._tasks.keep(self._serve(weights, dict(self._kept)), "publish")
        self._kept.clear()
        return self._newest

    async def _serve(self, weights: Weights, kept: Mapping[Unit, UnitSnapshot]) -> None:
        changes: dict[Unit, dict[str, Tensor]] = {}
        for unit, snapshot in kept.items():
            changes.setdefault(unit if isinstance(unit, Ends) else self.hosted, {}).update(snapshot.kind(PARAMETER))
        try:
            await self._replacer.replace(changes, weights)
        except SwarmError as error:
            log.warning("version %d is not served here: %s", weights.version, error)

    async def close(self) -> None:
        """End what is being published; what is served stays."""
        await self._tasks.stop()
        await asyncio.sleep(0)
