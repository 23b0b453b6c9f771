"""One run at one node: stage, sums, state, and their tasks.

part = await RunPart.open(…)        loaded, and it answers
await part.begin()                  with the state of the others
await part.keep_up()                until cancelled
await part.end()
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from node.device.thread import Device
from node.device.training_time import Priority
from node.events import Event, OnEvent
from node.hosting.replacing import Replacer
from node.runs.keeping import Keeping
from node.runs.stage.buddy_copies import Forms
from node.runs.stage.holding import Holding
from node.runs.stage.leaving import hand_over
from node.runs.stage.publishing import Publishing
from node.runs.stage.restoring import Restoring
from node.runs.stage.runs_here import RunsHere
from node.runs.stage.taking_part import TakingPart
from node.serving.host import Host
from node.training.compute_format import Compute
from node.training.graph_memory import Recompute
from node.training.run_units import RunUnits, StepHooks
from node.training.stage import Stage
from node.training.trained_stage import TrainedStage
from protocols.ids import ModelId
from protocols.kept import Kept
from protocols.roles import Role
from protocols.runs import RunSpec
from protocols.units import Ends, Unit
from swarm.peer.peer import Peer
from swarm.training.kept_state import KeptState
from swarm.training.members import Members
from swarm.training.snapshot import UnitSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What `RunPart.open` needs to know."""

    run: ModelId
    spec: RunSpec
    num_blocks: int
    """Of the whole model."""
    forms: Forms
    """Of the parameters of all units."""
    recompute: Recompute = "auto"
    compute: Compute = "float32"
    keeping: Keeping | None = None
    """The checkpoints that this node keeps."""


class RunPart:
    """The parts, made by `open`."""

    def __init__(
        self,
        settings: RunSettings,
        stage: Stage,
        host: Host,
        replacer: Replacer,
        peer: Peer,
        device: Device,
        runs: RunsHere,
        on_event: OnEvent,
    ) -> None:
        spec = settings.spec
        self.run, self._spec, self._device, self._on_event = settings.run, spec, device, on_event
        hooks = StepHooks(
            keeps=self._keeps, on_kept=self._keep, on_step=self._stepped,
            on_behind=lambda version: self.taking_part.fall_behind(version),
        )  # fmt: skip
        self.units = RunUnits(settings.run, spec, stage, settings.num_blocks, device, hooks)
        self.trained = TrainedStage(run=settings.run, stage=stage, states=self.units.states, spec=spec)
        self.kept = KeptState(self._snapshot)
        self.publishing = Publishing(self.units, host.served.blocks, replacer)
        members = Members(settings.run, peer.directory, peer.pool, num_blocks=settings.num_blocks, me=peer.peer_id)
        self.keeping = settings.keeping
        self.holding = Holding(self.units, self.kept.take, members, peer.peer_id, settings.forms, on_event)
        self.trained.held = lambda: (self.holding.held, self.holding.has_memory)
        self.taking_part = TakingPart(
            self.units, self.trained, members, on_event, self._fetched, settings.keeping, self.holding
        )  # fmt: skip
        self.restoring = Restoring(self.taking_part)
        self._runs = runs
        self._replacer = replacer

    @classmethod
    async def open(
        cls, settings: RunSettings, host: Host, replacer: Replacer, peer: Peer, device: Device, runs: RunsHere, on_event: OnEvent
    ) -> RunPart:
        """Make the stage of a host's units, and answer calls from then on: micro-batches are refused until `begin`. `end` it."""
        stage = await asyncio.to_thread(_make_stage, settings, host)
        part = cls(settings, stage, host, replacer, peer, device, runs, on_event)
        part.trained.is_catching_up = True
        runs.open(part.units, part.trained, part._take_state, part.publishing.publish, part.restoring.restore, part.holding.hold)
        return part

    async def begin(self) -> None:
        """Fetch the newest state of others. It waits if no peer gives it."""
        if self.keeping is not None:
            await self.keeping.listen(self._say_kept)
        await self.taking_part.begin()
        self._on_event(
            Event("training", f"version {self.units.version} of {self.run.name}: blocks {self.publishing.hosted.span}")
        )

    @property
    def roles(self) -> tuple[Role, ...]:
        """What the node's record says of it."""
        units: list[Unit] = [self.publishing.hosted, *(unit for unit in self.units.states if isinstance(unit, Ends))]
        keeper = () if self.keeping is None else (Role("keeper", self.run),)
        return (*(Role("stage", self.run, unit) for unit in units), *keeper)

    async def keep_up(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.taking_part.keep_up(), name="keep up")
            if self.keeping is not None:
                tasks.create_task(self.keeping.watch(), name="keep checkpoints")

    def pause(self, is_paused: bool, reason: str) -> None:
        """Take no new micro-batches, or take them again. Those in hand go on; what is in our sums counts, and prompts are answered."""
        self.trained.is_paused = is_paused
        self.trained.contribution.pause(is_paused)
        what = "paused: no new micro-batches, prompts are answered" if is_paused else "training goes on"
        self._on_event(Event("training", f"{what}; {reason}"))

    async def end(self) -> None:
        """Take no new micro-batches, stay for some seconds until the version in our sums is applied, and end what is under way."""
        if not await hand_over(self._runs.servicer, self.trained):
            self._on_event(Event("training", "left within a version: the micro-batches in its sums are computed again by others"))
        self._runs.close(self.run)
        await self.restoring.stop()
        await self.holding.stop()
        if self.keeping is not None:
            await self.keeping.close()
        await self.publishing.close()
        await self._replacer.close()

    def _keeps(self, version: int) -> bool:
        return self._spec.is_served(version) or self._is_checkpoint(version)

    def _is_checkpoint(self, version: int) -> bool:
        every = self._spec.checkpoint_every
        return bool(every) and version % every == 0

    def _keep(self, snapshot: UnitSnapshot) -> None:
        if self._is_checkpoint(snapshot.version):
            self.kept.keep(snapshot)
        if self._spec.is_served(snapshot.version):
            self.publishing.keep(snapshot)

    def _stepped(self, version: int) -> None:
        self.trained.contribution.stepped(version)
        self.trained.served = self.publishing.served

    def _fetched(self, unit: Unit) -> None:
        """A unit was fetched: what was agreed on before is of no use, and an earlier version may come again."""
        self._runs.forget_agreements(self.run, (unit,))
        self.publishing.go_back(self.units.version)

    def _say_kept(self, kept: Kept) -> None:
        self.trained.kept = kept

    async def _take_state(self, unit: Unit, version: int | None) -> UnitSnapshot:
        """Of the stage, of a version that is held in memory, or of the newest checkpoint here."""
        if (held := self.holding.of(unit, version)) is not None:
            return held
        kept = None if self.keeping is None else await self.keeping.kept()
        live = self.units.states.get(unit)
        is_kept = kept is not None and (
            live is None or live.version < kept.version if version is None else kept.version == version
        )
        if self.keeping is not None and is_kept:
            return await self.keeping.take(unit, version)
        return await self.kept.take(unit, version)

    async def _snapshot(self, unit: Unit) -> UnitSnapshot:
        return await self._device.run(lambda: self.units.snapshot(unit), Priority.UPDATE)


def _make_stage(settings: RunSettings, host: Host) -> Stage:
    """Copies the parameters of a host's units."""
    assert host.unit_engines is not None
    own = host.unit_engines.units
    with own.blocks.read() as blocks, contextlib.nullcontext() if own.ends is None else own.ends.read() as ends:
        return Stage(
            blocks.holding, None if ends is None else ends.holding, settings.num_blocks, recompute=settings.recompute,
            compute=settings.compute, max_positions=host.max_positions,
        )  # fmt: skip
