"""A trainer: data and no parameters; it steps a run's versions.

`run_trainer` shows the whole sequence. The caller gets `Event`s and a line of metrics for each version, and ends it by cancelling its
task: stages keep what they have, and the next trainer goes on from there. This is where a gradient's path begins (G1).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.config import NodeConfig
from node.events import Event, OnEvent
from node.joining import meet, peer_config
from node.runs.evaluator import Evaluator
from node.runs.journal import Comings, Journal
from node.runs.opening import OpenRun, RunData, RunOpener, open_validation, read_data
from node.runs.publisher import Publisher
from node.runs.sampler import ServedSamples
from node.training.data.batches import Batches
from node.training.data.micro_batch import Ids, MicroBatch
from node.training.data.token_data import TokenData
from node.training.metrics import MetricsFile, OnRow, VersionRow
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
from swarm.training.evaluation import Evaluation
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


AfterStep = Callable[[Step], Awaitable[None]]


async def run_trainer(config: TrainConfig, on_event: OnEvent, listeners: Sequence[OnRow] = (), clock: Clock = SYSTEM) -> None:
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
                members, journal = Members(run.model, peer.directory, peer.pool), Journal(metrics, listeners, clock)
                async with evaluating(run, data, config, peer, members, journal, on_event) as evaluator:
                    after = [Comings(members, journal).after, Publisher(run.spec, members, peer.pool).after, evaluator.after]
                    await Trainer(run, data, peer, members, journal, on_event, after, clock).train()
        finally:
            run.close()


@contextlib.asynccontextmanager
async def evaluating(
    run: OpenRun, data: RunData, config: TrainConfig, peer: Peer, members: Members, journal: Journal, on_event: OnEvent
) -> AsyncIterator[Evaluator]:
    """The evaluator of a run; what it has under way at the end is waited for, if nothing failed, else cancelled."""
    validation = await asyncio.to_thread(open_validation, data, config.node.data_dir, lambda what, done, total: None)
    batches, num_blocks = _batches(data, run.spec, validation), run.checkpoint.num_blocks
    loss = Evaluation(members, peer.pool, run.spec, num_blocks, random.Random(peer.peer_id))
    samples = ServedSamples(peer, run.model, num_blocks, run.checkpoint.path, data.tokenizer)
    evaluator = Evaluator(
        data.file.evaluation, run.spec.batch.steps, loss, batches.validation, drawn, samples, journal, on_event
    )  # fmt: skip
    try:
        yield evaluator
        await evaluator.finish()
    finally:
        await evaluator.stop()
        samples.close()


class Trainer:
    """Steps one run. Belongs to one event loop."""

    def __init__(
        self,
        run: OpenRun,
        data: RunData,
        peer: Peer,
        members: Members,
        journal: Journal,
        on_event: OnEvent,
        after: Sequence[AfterStep] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        """after: awaited in this order after each step, before the next one begins: what takes long starts a task of its own."""
        self._after = after
        self._run, self._spec, self._journal, self._on_event = run, run.spec, journal, on_event
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
        self._journal.begin(version)
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
            self._journal.event("waiting", text)
            self._on_event(Event("waiting", text))

    def _note(self, step: Step) -> None:
        self._said = ""
        spec, totals = self._spec, step.totals
        self._journal.version = step.version
        row = VersionRow(
            version=step.version,
            tokens=step.version * spec.batch.batch_tokens,
            loss=totals.loss_sum / max(1, totals.num_targets),
            lr=learning_rate(spec.schedule, spec.optimizer.lr, step.version - 1, spec.batch.steps),
            grad_norm=step.grad_norm,
            time_s=self._journal.time_s,
            tokens_per_s=spec.batch.batch_tokens / step.seconds if step.seconds else 0.0,
            peers=step.num_stages,
            bytes_sent=totals.num_bytes,
            waiting_s=step.closing_s,
            redone=totals.num_redone,
        )
        self._journal.write(row)


class BatchSource:
    """Micro-batches as they travel."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def draw(self, version: int, index: int) -> Drawn:
        """As `pipeline.Source.draw`."""
        return drawn(self._batches.micro_batch(version, index))


def drawn(micro_batch: MicroBatch) -> Drawn:
    """A micro-batch as it travels."""
    return Drawn(
        ids=_wire(micro_batch.ids),
        labels=_wire(micro_batch.labels),
        positions=None if micro_batch.positions is None else _wire(micro_batch.positions),
        num_targets=micro_batch.num_targets,
    )


def _batches(data: RunData, spec: RunSpec, validation: TokenData | None = None) -> Batches:
    assert data.train is not None, "a trainer has the data"
    return Batches.of(spec, data.train, validation)


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
