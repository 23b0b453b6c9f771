"""A trainer: data and no parameters; it steps a run's versions.

`run_trainer` shows the whole sequence. The caller gets `Event`s and a line of metrics for each version, and ends it by cancelling its
task: stages keep what they have, and the next trainer goes on from there. This is where a gradient's path begins (G1).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.config import NodeConfig
from node.events import Event, OnEvent
from node.joining import meet, peer_config
from node.runs.opening import OpenRun, RunData, RunOpener, read_data
from node.runs.publisher import Publisher
from node.training.data.batches import Batches
from node.training.data.micro_batch import Ids, MicroBatch
from node.training.metrics import MetricsFile, VersionRow
from node.training.optimizer.schedule import learning_rate
from node.training.spec.run_file import RunFile
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.runs import RunSpec
from protocols.tensors import WireTensor
from swarm.clock import SYSTEM, Clock
from swarm.meeting import keyring
from swarm.peer.peer import Peer, software
from swarm.training.closing import Closing
from swarm.training.coordinator import Coordinator, Step
from swarm.training.members import Members
from swarm.training.pipeline import Drawn, Pipeline
from swarm.weights.naming import Naming
from swarm.weights.uploader import Uploader

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that `swarm train` needs to know before it starts."""

    file: RunFile
    node: NodeConfig
    """How this peer meets others."""
    folder: Path
    """`runs/NAME`: metrics and checkpoints."""


OnVersion = Callable[[VersionRow], None]
AfterStep = Callable[[Step], Awaitable[None]]


async def run_trainer(config: TrainConfig, on_event: OnEvent, on_version: OnVersion) -> None:
    """Train until the run's last version. Whatever keeps it from that is raised as a SwarmError, after everything was stopped."""
    uploader = Uploader(config.node.upload_bytes_s)

    def tell(what: str, done: int, total: int) -> None:
        if done == total:
            on_event(Event("read", f"{what}: {total} done"))

    data = await asyncio.to_thread(lambda: read_data(config.file, config.node.data_dir, tell, is_needed=True))
    async with Peer(peer_config(config.node, on_event), uploader.handlers()) as peer:
        await meet(config.node, peer, on_event)
        naming = Naming.of(
            peer.ping,
            config.node.data_dir,
            keyring.known_as(config.node.swarm, config.node.entry.key),
            config.node.accept_new_weights,
        )
        run = await RunOpener(peer, config.node.data_dir, naming, tell).by_file(data)
        try:
            uploader.add(run.shelf)
            on_event(Event("run", f"{run.model} ({run.spec.batch.steps} versions)"))
            await peer.directory.announce(lambda: _record(config.node, peer, run), (run.model.name,))
            on_event(Event("ready"))
            with MetricsFile(config.folder) as metrics:
                members = Members(run.model, peer.directory, peer.pool)
                after = [Publisher(run.spec, members, peer.pool).after]
                await Trainer(run, data, peer, members, metrics, on_event, on_version, after).train()
        finally:
            run.close()


class Trainer:
    """Steps one run. Belongs to one event loop."""

    def __init__(
        self,
        run: OpenRun,
        data: RunData,
        peer: Peer,
        members: Members,
        metrics: MetricsFile,
        on_event: OnEvent,
        on_version: OnVersion,
        after: Sequence[AfterStep] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        """after: awaited in this order after each step, before the next one begins: what takes long starts a task of its own."""
        self._after = after
        self._run, self._spec, self._peer, self._metrics = run, run.spec, peer, metrics
        self._on_event, self._on_version, self._clock, self._began_s = on_event, on_version, clock, clock.now_s()
        self._said = ""
        num_blocks = run.checkpoint.num_blocks
        pipeline = Pipeline(
            members=members, pool=peer.pool, spec=run.spec, num_blocks=num_blocks, source=BatchSource(_batches(data, run.spec)),
            clock=clock, rng=random.Random(peer.peer_id), on_wait=self._waits,
        )  # fmt: skip
        self._coordinator = Coordinator(
            members=members, pipeline=pipeline, closing=Closing(members, run.spec, peer.pool, num_blocks), spec=run.spec,
            num_blocks=num_blocks, clock=clock,
        )  # fmt: skip

    async def train(self) -> None:
        """From the version that the stages have to the run's last one."""
        version = await self._first_version()
        while version < self._spec.batch.steps:
            step = await self._coordinator.step(version)
            self._note(step)
            version = step.version
            for work in self._after:
                await work(step)
        self._on_event(Event("trained", f"{self._run.model.name}: version {version} of {self._spec.batch.steps}"))

    async def _first_version(self) -> int:
        while (version := await self._coordinator.version()) is None:
            self._waits(f"no stage of {self._run.model.name} answers; waiting for one: swarm node --run")
            await asyncio.sleep(LOOK_AGAIN_S)
        return version

    def _waits(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._on_event(Event("waiting", text))

    def _note(self, step: Step) -> None:
        self._said = ""
        spec, totals = self._spec, step.totals
        row = VersionRow(
            version=step.version,
            tokens=step.version * spec.batch.batch_tokens,
            loss=totals.loss_sum / max(1, totals.num_targets),
            lr=learning_rate(spec.schedule, spec.optimizer.lr, step.version - 1, spec.batch.steps),
            grad_norm=step.grad_norm,
            time_s=self._clock.now_s() - self._began_s,
            tokens_per_s=spec.batch.batch_tokens / step.seconds if step.seconds else 0.0,
            peers=step.num_stages,
            bytes_sent=totals.num_bytes,
            waiting_s=step.closing_s,
            redone=totals.num_redone,
        )
        self._metrics.write(row)
        self._on_version(row)


class BatchSource:
    """Micro-batches as they travel."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def draw(self, version: int, index: int) -> Drawn:
        """As `pipeline.Source.draw`."""
        micro_batch: MicroBatch = self._batches.micro_batch(version, index)
        return Drawn(
            ids=_wire(micro_batch.ids),
            labels=_wire(micro_batch.labels),
            positions=None if micro_batch.positions is None else _wire(micro_batch.positions),
            num_targets=micro_batch.num_targets,
        )


def _batches(data: RunData, spec: RunSpec) -> Batches:
    assert data.train is not None, "a trainer has the data"
    return Batches.of(spec, data.train)


def _wire(values: Ids) -> WireTensor:
    return WireTensor("int32", tuple(values.shape), "none", values.astype("<i4", copy=False).tobytes())


def _record(config: NodeConfig, peer: Peer, run: OpenRun) -> PeerRecord:
    record = PeerRecord(
        peer=peer.peer_id,
        name=config.name,
        software=software(),
        addresses=tuple(peer.addresses),
        certificate=peer.certificate,
        p2p_addresses=tuple(peer.multiaddrs),
        upload_bytes_s=config.upload_bytes_s,
        roles=(Role("trainer", run.model),),
    )
    return replace(record, reachable=peer.reachable).fitted()
