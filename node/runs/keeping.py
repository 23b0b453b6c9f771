"""Keeps checkpoints of a run, at its trainer or at a node.

    runs/NAME/checkpoint-VERSION/    of every `checkpoint.every_steps`-th version, and of the last one

A checkpoint is assembled from the stages by a task of its own: the run does not wait for the disk. If others are due before it is done,
the newest of them follows. Only after one that the run has overtaken is the next one waited for. One process keeps checkpoints in a
folder; another one is told that it does not. What is kept here is given to stages that have lost their state.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from node.events import Event, OnEvent
from node.training.checkpoint.contents import RunModel, TrainedUnit
from node.training.checkpoint.folder import CheckpointFolder
from node.training.checkpoint.keeper import Keeper
from protocols.errors import CheckpointError, DiskFullError, NoRouteError, SwarmError
from protocols.kept import Kept
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm import files
from swarm.rpc.pool import ChannelPool
from swarm.training.coordinator import Step
from swarm.training.members import Members
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_server import TakeState

log = logging.getLogger(__name__)

LOCK = ".keeper.lock"
LOOK_S = 2.0
"""Seconds between two looks of a node at whether a checkpoint is due."""

LONGEST_WAIT_S = 60.0
"""After a checkpoint was overtaken by the run (the stages keep the state of one such version), the next one is waited for, so long."""

LAST_TRIES, AGAIN_S = 5, 1.0
"""The last version is kept at the run's end; so often it is tried, with a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHere:
    """The stage of the same process: its state is not downloaded."""

    versions: Callable[[], Mapping[Unit, int]]
    """Of its units."""
    take: TakeState


class Keeping:
    """Of one run in one folder; `open` makes it. All methods belong to one event loop."""

    def __init__(
        self,
        folder: Path,
        model: RunModel,
        members: Members,
        pool: ChannelPool,
        on_event: OnEvent,
        lock: int,
        stage: StageHere | None = None,
    ) -> None:
        self._keeper = Keeper(CheckpointFolder(folder), model, pool)
        self._spec, self._members, self._on_event, self._lock = model.spec, members, on_event, lock
        self._units, self._stage = model.units, stage
        self._due: tuple[int, Mapping[Unit, bytes] | None] | None = None
        self._working: asyncio.Task[None] | None = None
        self._has_failed = self._was_overtaken = False
        self._on_kept: Callable[[Kept], None] = lambda kept: None

    @classmethod
    async def open(
        cls,
        folder: Path,
        model: RunModel,
        members: Members,
        pool: ChannelPool,
        on_event: OnEvent,
        stage: StageHere | None = None,
    ) -> Keeping | None:
        """None if another process keeps checkpoints there. stage: None = this process trains no units.

        ModelMismatchError names the first field in which a checkpoint that is there differs from this run. CheckpointError: the folder
        cannot be written.
        """
        lock = await asyncio.to_thread(_locked, folder)
        if lock is None:
            on_event(Event("warning", f"another process keeps checkpoints in {folder}: this one keeps none"))
            return None
        found = cls(folder, model, members, pool, on_event, lock, stage)
        try:
            if (kept := await found.kept()) is not None:
                on_event(Event("checkpoint", f"version {kept.version} is in {folder}"))
        except BaseException:
            await found.close()
            raise
        return found

    async def close(self) -> None:
        """End what is under way, and leave the folder to others. What is half written is removed."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    # --- what is kept

    async def kept(self) -> Kept | None:
        """The newest checkpoint."""
        newest = await self._keeper.newest()
        return None if newest is None else Kept(version=newest.version, chains=cast("Mapping[Unit, bytes]", newest.chains))

    async def take(self, unit: Unit, version: int | None) -> UnitSnapshot:
        """A `TakeState` of the newest checkpoint."""
        return await self._keeper.take(unit, version)

    async def listen(self, on_kept: Callable[[Kept], None]) -> None:
        """Call it with the newest checkpoint, now if there is one, and with each later one."""
        self._on_kept = on_kept
        if (kept := await self.kept()) is not None:
            on_kept(kept)

    # --- when

    async def after(self, step: Step) -> None:
        """As `trainer.AfterStep`: a checkpoint of this version, if it is due, in the background."""
        if self._is_due(step.version):
            self._begin(step.version, step.chains)
            if self._was_overtaken and self._working is not None:  # else no checkpoint would ever be whole
                await asyncio.wait([self._working], timeout=LONGEST_WAIT_S)

    async def watch(self) -> None:
        """At a node: keep each version that is due as soon as all stages have gone so far, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._members.look()
            version = self._newest_due()
            kept = await self.kept()
            if version > max(0 if kept is None else kept.version, 0 if self._due is None else self._due[0]):
                self._begin(version, None)
                await self.wait()

    async def finish(self, version: int) -> None:
        """At the run's end: wait until its last version is kept. Without success a warning has been said."""
        await self.wait()
        for number in range(LAST_TRIES):
            kept = await self.kept()
            if kept is not None and kept.version >= version:
                return
            if number:
                await asyncio.sleep(AGAIN_S)
            self._begin(version, None)
            await self.wait()

    async def wait(self) -> None:
        """Until nothing is under way."""
        if self._working is not None:
            await asyncio.shield(self._working)

    # --- how

    def _is_due(self, version: int) -> bool:
        every = self._spec.checkpoint_every
        return version == self._spec.batch.steps or (bool(every) and version % every == 0)

    def _newest_due(self) -> int:
        """The latest version to keep that stages of all units have passed, by what they said last; 0: none."""
        latest = dict.fromkeys(self._units, 0)
        for stage in self._members.stages:
            for unit, status in stage.units.items():
                latest[unit] = max(status.version, latest.get(unit, 0))  # type: ignore[index, arg-type]
        for unit, version in self._versions_here().items():
            latest[unit] = max(version, latest.get(unit, 0))  # type: ignore[index, arg-type]
        reached, every = min(latest.values()), self._spec.checkpoint_every
        if reached == self._spec.batch.steps:
            return reached
        return reached - reached % every if every else 0

    def _begin(self, version: int, chains: Mapping[Unit, bytes] | None) -> None:
        self._due = version, chains
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="keep checkpoints")

    async def _work(self) -> None:
        """Keep what is due, until nothing is."""
        while self._due is not None:
            (version, chains), self._due = self._due, None
            try:
                await self._keep(version, chains)
                self._has_failed = self._was_overtaken = False
            except SwarmError as error:
                self._fail(version, error)

    async def _keep(self, version: int, chains: Mapping[Unit, bytes] | None) -> None:
        own = None if chains is None else {unit: chains[unit] for unit in self._units if unit in chains}
        await self._members.look()
        path = await self._keeper.keep(version, own, self._sources(version), self._here(version))
        self._on_event(Event("checkpoint", str(path)))
        if (kept := await self.kept()) is not None:
            self._on_kept(kept)

    def _sources(self, version: int) -> dict[TrainedUnit, list[PeerRecord]]:
        """The stages that have passed this version, of each unit."""
        found: dict[TrainedUnit, list[PeerRecord]] = {unit: [] for unit in self._units}
        for stage in self._members.stages:
            for unit in self._units:
                if unit in stage.units and stage.units[unit].version >= version:
                    found[unit].append(stage.record)
        return found

    def _versions_here(self) -> Mapping[Unit, int]:
        return {} if self._stage is None else self._stage.versions()

    def _here(self, version: int) -> dict[Unit, TakeState]:
        """The units that the stage of this process has had at this version."""
        own = self._versions_here()
        return {unit: self._stage.take for unit in self._units if self._stage is not None and own.get(unit, -1) >= version}

    def _fail(self, version: int, error: SwarmError) -> None:
        """Said once, until one succeeds again: the run goes on."""
        log.warning("the checkpoint of version %d: %s", version, error)
        self._was_overtaken = isinstance(error, NoRouteError)
        if not self._has_failed:
            self._on_event(Event("warning", f"there is no checkpoint of version {version}: {error}"))
        self._has_failed = True


def _locked(folder: Path) -> int | None:
    """The descriptor that holds the folder; None if another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if files.is_full(error):
            raise DiskFullError(f"the disk is full: no checkpoint can be kept in {folder}; free some space") from error
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    os.close(lock)
    return None
