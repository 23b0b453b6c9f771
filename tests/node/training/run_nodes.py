"""Stages and trainers of a run behind real servers, without DHT.

Records are files of a folder, which stands for the directory; so nodes may be parts of one process, or processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.device.thread import Device
from node.device.training_time import Priority
from node.events import Event
from node.runs.stage.buddy_copies import Forms
from node.runs.stage.holding import Holding
from node.runs.stage.restoring import Restoring
from node.runs.stage.runs_here import RunsHere
from node.runs.stage.taking_part import TakingPart
from node.runs.trainer.copier import Copier
from node.training.run_units import RunUnits, StepHooks
from node.training.servicer import TrainingServicer
from node.training.stage import Stage
from node.training.trained_stage import TrainedStage
from protocols import services
from protocols.identity import Identity
from protocols.ids import ModelId
from protocols.leases import Finished
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.run_status import Publish
from protocols.runs import RunSpec
from protocols.services import Method
from protocols.units import Blocks, Ends, Unit
from swarm.clock import SYSTEM, Clock
from swarm.directory.snapshot import Snapshot
from swarm.rpc import Call, ChannelPool, RpcServer, tls
from swarm.training.closing import Closing
from swarm.training.coordinator import Coordinator, Step
from swarm.training.election import Trainers
from swarm.training.kept_state import KeptState
from swarm.training.lease_desk import LeaseDesk
from swarm.training.members import Members
from swarm.training.pipeline import Drawn, Pipeline
from swarm.training.recovery import Recovery
from swarm.training.snapshot import UnitSnapshot
from swarm.training.turns import Turns
from swarm.training.worker import Worker
from tests.node.training.toy_run import new_identity

log = logging.getLogger(__name__)

UnaryHandler = Callable[[bytes, Call], Awaitable[bytes]]
Draw = Callable[[int, int], Drawn]


@dataclass(frozen=True)
class Folder:
    """A directory of peers: a file for each record."""

    path: Path

    async def snapshot(self, model: str) -> Snapshot:
        return Snapshot(model, tuple(PeerRecord.parse(file.read_bytes()) for file in sorted(self.path.glob("*.record"))), 0.0)

    def announce(self, record: PeerRecord) -> None:
        scratch = self.path / f"{record.peer}.new"
        scratch.write_bytes(record.encode())
        os.replace(scratch, self.path / f"{record.peer}.record")


class RunNode:
    """One stage of a run: what `node/runs/stage/run_part.py` makes of a host, without serving."""

    def __init__(
        self,
        run: ModelId,
        spec: RunSpec,
        stage: Any,
        num_blocks: int,
        folder: Folder,
        identity: Identity | None = None,
        forms: Forms = dict,
        clock: Clock = SYSTEM,
    ) -> None:
        """forms: of the parameters of all units, for copies that it holds for others; without them it holds its own only. clock: of what
        it holds."""
        self.identity, self.folder, self.run = identity or new_identity(), folder, run
        self.device, self.pool = Device(), ChannelPool(self.identity)
        self.runs = RunsHere(TrainingServicer(self.device), _at_once)
        hooks = StepHooks(
            on_step=lambda version: self.trained.contribution.stepped(version),
            on_behind=lambda version: self.taking_part.fall_behind(version),
        )
        self.units = RunUnits(run, spec, stage, num_blocks, self.device, hooks)
        self.trained = TrainedStage(run=run, stage=stage, states=self.units.states, spec=spec)
        self.members = Members(run, folder, self.pool, num_blocks=num_blocks, me=self.identity.peer_id)
        self.events: list[Event] = []
        self.holding = Holding(
            self.units, KeptState(self._live).take, self.members, self.identity.peer_id, forms, self._say, clock=clock
        )  # fmt: skip
        self.trained.held = lambda: (self.holding.held, self.holding.has_memory)
        self.taking_part = TakingPart(
            self.units,
            self.trained,
            self.members,
            self._say,
            on_fetched=lambda unit: self.runs.forget_agreements(run, (unit,)),
            holding=self.holding,
        )
        self.restoring = Restoring(self.taking_part)
        self._span = stage.span
        self._keeps_up: asyncio.Task[None] | None = None

    async def start(self, more: Mapping[Method, UnaryHandler] | None = None) -> None:
        """Serve, fetch what others have, and be found. more: methods of a test."""
        more = more or {}
        certificate = tls.make(self.identity)
        self.server = RpcServer(
            self.identity,
            certificate,
            {
                **self.runs.servicer.handlers(),
                **self.runs.handlers(),
                **{method.name: one for method, one in more.items()},
            },
            methods=(*services.ALL, *more),
        )
        address = f"127.0.0.1:{await self.server.start()}"
        self.runs.servicer.connect(self.identity.peer_id, self.pool)
        self.runs.connect(SimpleNamespace(identity=self.identity, pool=self.pool, peer_id=self.identity.peer_id))  # type: ignore[arg-type]
        self.trained.is_catching_up = True
        self.runs.open(self.units, self.trained, self.take, _no_publish, self.restoring.restore, self.holding.hold)
        await self.taking_part.begin()
        self._keeps_up = asyncio.create_task(self.taking_part.keep_up())
        units: tuple[Unit, ...] = (Blocks.of(self._span), *(unit for unit in self.units.states if isinstance(unit, Ends)))
        self.folder.announce(
            PeerRecord(
                peer=self.identity.peer_id,
                addresses=(address,),
                certificate=certificate.der,
                roles=tuple(Role("stage", self.run, unit) for unit in units),
            )
        )

    async def take(self, unit: Unit, version: int | None) -> UnitSnapshot:
        held = self.holding.of(unit, version)
        return await self._live(unit) if held is None else held

    async def between_steps(self) -> dict[Unit, UnitSnapshot]:
        """All units as they are when no step is under way: a step changes parameters first, and then versions."""
        return await self.device.run(lambda: {unit: self.units.snapshot(unit) for unit in self.units.states}, Priority.UPDATE)

    async def _live(self, unit: Unit) -> UnitSnapshot:
        return await self.device.run(lambda: self.units.snapshot(unit), Priority.UPDATE)

    def _say(self, event: Event) -> None:
        self.events.append(event)
        log.info("%s: %s", event.kind, event.text)

    async def stop(self) -> None:
        """Gone, as far as others can tell."""
        if self._keeps_up is not None:
            self._keeps_up.cancel()
            await asyncio.gather(self._keeps_up, return_exceptions=True)
        await self.restoring.stop()
        await self.holding.stop()
        await self.server.stop()
        await self.runs.stop()
        await self.pool.close()


async def _at_once(num_bytes: int) -> None:
    """No limit."""


async def _no_publish(publish: Publish) -> int:
    raise AssertionError("no version is published here")


@dataclass(frozen=True)
class Drawing:
    """`pipeline.Source`."""

    of: Draw

    def draw(self, version: int, index: int) -> Drawn:
        return self.of(version, index)


class RunTrainer:
    """A trainer: what `node/runs/trainer/part.py` makes, without a file and metrics."""

    def __init__(
        self, run: ModelId, spec: RunSpec, num_blocks: int, folder: Folder, draw: Draw, holds_by: Clock | None = None
    ) -> None:
        """holds_by: it has the stages hold versions in memory, by this clock, and takes them back to these; None: neither of both."""
        self.identity = new_identity()
        self.pool, self.folder, self.run = ChannelPool(self.identity), folder, run
        self.members = Members(run, folder, self.pool, num_blocks=num_blocks)
        self.finished: list[Finished] = []
        me = self.identity.peer_id
        pipeline = Pipeline(members=self.members, spec=spec, source=Drawing(draw),
                            clock=SYSTEM, rng=random.Random(me))  # fmt: skip
        desk = LeaseDesk(me, SYSTEM, lambda: pipeline.window)
        closing = Closing(self.members, spec)
        self.restored: list[str] = []
        recovery = Recovery(
            members=self.members, clock=SYSTEM, own_kept=_none, on_wait=lambda text: None, on_restore=self.restored.append
        )  # fmt: skip
        coordinator = Coordinator(
            members=self.members, desk=desk, closing=closing, spec=spec, clock=SYSTEM,
            recovery=None if holds_by is None else recovery,
        )  # fmt: skip
        self.copier = None if holds_by is None else Copier(self.members, holds_by)
        self.turns = Turns(me=me, others=Trainers(run, me, folder, self.pool), worker=Worker(run, pipeline, self.finished.append),
                           desk=desk, coordinator=coordinator, after=self._after, clock=SYSTEM)  # fmt: skip

    async def start(self) -> None:
        """Be found by other trainers."""
        certificate = tls.make(self.identity)
        self.server = RpcServer(self.identity, certificate, {services.LEASE.name: self.turns.on_lease})
        address = f"127.0.0.1:{await self.server.start()}"
        self.folder.announce(
            PeerRecord(
                peer=self.identity.peer_id,
                addresses=(address,),
                certificate=certificate.der,
                roles=(Role("trainer", self.run),),
            )
        )

    async def train(self, until: int, within_s: float = 120.0) -> None:
        """Until the run is at this version."""
        async with asyncio.timeout(within_s):
            await self.turns.train(until)

    @property
    def losses(self) -> list[float]:
        """Mean of each version."""
        return [one.loss_sum / one.num_targets for one in self.finished]

    async def _after(self, step: Step) -> None:
        if self.copier is not None:
            await self.copier.after(step)

    async def close(self) -> None:
        if self.copier is not None:
            await self.copier.stop()
        await self.server.stop()
        await self.pool.close()


async def _none() -> None:
    """No checkpoint is kept."""


@contextlib.asynccontextmanager
async def running(
    run: ModelId, spec: RunSpec, stages: Sequence[Stage], num_blocks: int, folder: Path, draw: Draw
) -> AsyncIterator[tuple[list[RunNode], RunTrainer]]:
    """Stages and a trainer in this process."""
    directory = Folder(folder)
    nodes = [RunNode(run, spec, stage, num_blocks, directory) for stage in stages]
    trainer = RunTrainer(run, spec, num_blocks, directory, draw)
    try:
        for node in nodes:
            await node.start()
        await trainer.start()
        yield nodes, trainer
    finally:
        await trainer.close()
        for node in nodes:
            await node.stop()
