"""Keeper: assembles a run's checkpoints from its stages.

It also gives state of the newest one, so that stages can be restored after all of them have died. Who calls it, and when, is not its
matter: a trainer or a node tells it a version, the chains that the commit has made, and which peers have each unit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType

from node.training.checkpoint.contents import RunModel, TrainedUnit
from node.training.checkpoint.folder import CheckpointFolder
from node.training.checkpoint.stored import StoredCheckpoint
from node.training.checkpoint.writer import CheckpointWriter
from protocols.errors import BadRequestError, CheckpointError, NoRouteError, SpanNotServedError, VersionMismatchError
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm.rpc.pool import ChannelPool
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, trained_form
from swarm.training.state_server import TakeState

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Units that are downloaded at once, beside the one that is written: so many are in memory."""


class Keeper:
    """Checkpoints of one run in one folder. All methods belong to one event loop; files are read and written in threads."""

    def __init__(self, folder: CheckpointFolder, model: RunModel, pool: ChannelPool) -> None:
        self._folder, self._model, self._pool = folder, model, pool
        self._newest: StoredCheckpoint | None = None
        self._writing = asyncio.Lock()

    async def newest(self) -> StoredCheckpoint | None:
        """The newest whole checkpoint, also one that another process has written. ModelMismatchError: it is of another run."""
        versions = await asyncio.to_thread(self._folder.versions)
        if self._newest is None or versions[:1] != [self._newest.version]:
            self._newest = await asyncio.to_thread(self._folder.newest, self._model.run, self._model.spec)
        return self._newest

    async def keep(
        self,
        version: int,
        chains: Mapping[TrainedUnit, bytes] | None,
        sources: Mapping[TrainedUnit, Sequence[PeerRecord]],
        own: Mapping[Unit, TakeState] = MappingProxyType({}),
        best: int | None = None,
    ) -> Path:
        """Download every unit at this version, write the checkpoint, publish it; one at a time.

        chains: of every unit, as the commit made them; None: not known here, so what the sources say is taken. sources: who may have each
        unit. own: units of a stage in this process, and what gives them: they are not downloaded if they are of this version. best:
        a version whose checkpoint is kept beside the newest ones. NoRouteError: a unit cannot be had; DiskFullError,
        CheckpointError: it cannot be written. Older checkpoints stay good then, and nothing is left of this one.
        """
        lacking = [
            unit
            for unit in self._model.units
            if (chains is not None and unit not in chains) or not (unit in own or sources.get(unit))
        ]
        if lacking:
            raise NoRouteError(
                f"no peer is known that has the state of {lacking[0]} at version {version}: {len(lacking)} units lack one"
            )
        async with self._writing:
            writer = await asyncio.to_thread(CheckpointWriter, self._folder, self._model, version)
            try:
                await self._fill(writer, await asyncio.to_thread(self._wanted, writer, chains, sources), own)
                path = await asyncio.to_thread(writer.publish, best)
            finally:
                await asyncio.shield(asyncio.to_thread(writer.abandon))
        log.info("checkpoint of version %d is at %s", version, path)
        return path

    def _wanted(
        self,
        writer: CheckpointWriter,
        chains: Mapping[TrainedUnit, bytes] | None,
        sources: Mapping[TrainedUnit, Sequence[PeerRecord]],
    ) -> list[Wanted]:
        return [
            Wanted(
                unit=unit, version=writer.version, chain=None if chains is None else chains[unit],
                check=trained_form(writer.parameters(unit)), sources=sources.get(unit, ()),
            )
            for unit in self._model.units
        ]  # fmt: skip

    async def _fill(self, writer: CheckpointWriter, wanted: Sequence[Wanted], own: Mapping[Unit, TakeState]) -> None:
        """Write every unit, those of this process first."""
        lacking = [one for one in wanted if one.unit not in own or not await _add(writer, one, own[one.unit])]
        async with aclosing(download(self._pool, self._model.run, lacking, at_once=AT_ONCE)) as snapshots:
            async for snapshot in snapshots:
                await asyncio.to_thread(writer.add, snapshot)

    async def take(self, unit: Unit, version: int | None) -> UnitSnapshot:
        """A `TakeState` (`swarm/training/state_server.py`) of the newest checkpoint. VersionMismatchError names the version here."""
        found = await self.newest()
        if found is None:
            raise VersionMismatchError(f"there is no checkpoint of {self._model.run.name} here yet; ask another peer")
        if version not in (None, found.version):
            raise VersionMismatchError(
                f"the newest checkpoint here is of version {found.version}, not {version}; ask another peer"
            )
        try:
            return await asyncio.to_thread(found.load, unit)
        except CheckpointError:
            self._newest = None  # it may have been removed meanwhile; look again at the next question
            raise


async def _add(writer: CheckpointWriter, wanted: Wanted, take: TakeState) -> bool:
    """Write a unit of this process, by the checks of a download; False if it is not that state."""
    try:
        snapshot = await take(wanted.unit, wanted.version)
        wanted.check(snapshot.form)
    except (VersionMismatchError, SpanNotServedError, BadRequestError) as error:
        log.info("state of %s from here: %s", wanted.unit, error)
        return False
    is_good = wanted.chain in (None, snapshot.chain) and not await asyncio.to_thread(snapshot.first_odd)
    if is_good:
        await asyncio.to_thread(writer.add, snapshot)
    return is_good
