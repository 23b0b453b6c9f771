"""A trainer: data and no parameters; several may train one run.

`run_trainer` shows the whole sequence. The caller gets `Event`s and a line of metrics for each version, and ends it by cancelling its
task: stages keep what they have, and another trainer goes on from there. This is where a gradient's path begins (G1); which trainer
coordinates is found in `swarm/training/turns.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.about import AboutHere
from node.config import NodeConfig
from node.events import Event, OnEvent
from node.joining import meet, peer_config
from node.measuring import measuring
from node.metrics import TRAINER
from node.runs.batch_source import BatchSource, batches_of, drawn
from node.runs.copier import HOLD_EVERY_S, Copier
from node.runs.evaluator import Evaluator
from node.runs.journal import Comings, Journal
from node.runs.journal_server import JournalServer
from node.runs.keeper_server import KeeperServer, model_of
from node.runs.keeping import Keeping
from node.runs.lease_handler import LeaseHandler
from node.runs.notes import Notes, read_noted
from node.runs.opening import OpenRun, Progress, RunData, RunOpener, open_validation, read_data, reading
from node.runs.publisher import PUBLISH_EVERY_S, Publisher
from node.runs.run_reports import RunReports
from node.runs.sampler import ServedSamples
from node.training.contribution import Contribution
from node.training.metrics import MetricsFile, OnRow
from node.training.spec.run_file import RunFile
from protocols.about import Trained
from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.kept import Kept
from protocols.leases import Done, Finished
from protocols.records import PeerRecord
from protocols.roles import Role
from swarm import waiting
from swarm.clock import SYSTEM, Clock
from swarm.meeting import keyring
from swarm.peer.peer import Peer, software
from swarm.rpc.pool import ChannelPool
from swarm.training.closing import Closing
from swarm.training.coordinator import Coordinator, Step
from swarm.training.election import Trainers
from swarm.training.evaluation import Evaluation
from swarm.training.lease_desk import LeaseDesk
from swarm.training.members import Members
from swarm.training.pipeline import Pipeline
from swarm.training.recovery import Recovery
from swarm.training.turns import Turns
from swarm.training.worker import Worker
from swarm.waiting import Waits
from swarm.weights.naming import Naming
from swarm.weights.uploader import Uploader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that `swarm train` needs to know before it starts."""

    file: RunFile
    node: NodeConfig
    """How this peer meets others."""
    folder: Path
    """`runs/NAME`: metrics and checkpoints."""
    publish_every_s: float = PUBLISH_EVERY_S
    """As `Publisher` has it."""
    hold_every_s: float = HOLD_EVERY_S
    """As `Copier` has it."""


AfterStep = Callable[[Step], Awaitable[None]]
MakeWork = Callable[[Members, ChannelPool], AfterStep]


async def run_trainer(
    config: TrainConfig,
    on_event: OnEvent,
    listeners: Sequence[OnRow] = (),
    clock: Clock = SYSTEM,
    also: Sequence[MakeWork] = (),
    waits: Waits | None = None,
) -> None:
    """Train until the run's last version. Whatever keeps it from that is raised as a SwarmError, after everything was stopped.

    also: make further work after each step, beside what is published and evaluated.
    """
    with measuring(config.node.metrics, on_event, TRAINER):
        await _train(config, on_event, listeners, clock, also, waits or Waits())


async def _train(
    config: TrainConfig,
    on_event: OnEvent,
    listeners: Sequence[OnRow],
    clock: Clock,
    also: Sequence[MakeWork],
    waits: Waits,
) -> None:
    uploader, desk = Uploader(config.node.upload_bytes_s), LeaseHandler()
    keepers, journals = KeeperServer(uploader.turn), JournalServer(uploader.spend)
    with waits.on(waiting.READING_DATA) as progress:
        tell = reading(progress, on_event)
        data = await asyncio.to_thread(lambda: read_data(config.file, config.node.data_dir, tell, is_needed=True))
    trainers = list[Trainer]()
    about = AboutHere("cpu", trained=lambda: [one.trained() for one in trainers])
    handlers = {**about.handlers(), **uploader.handlers(), **desk.handlers(), **journals.handlers(), **keepers.handlers()}
    async with Peer(peer_config(config.node, on_event), handlers) as peer:
        with waits.on(waiting.JOINING):
            await meet(config.node, peer, on_event)
        with waits.on(waiting.loading("version 0")) as progress:
            run = await _opened(config.node, peer, data, reading(progress, on_event))
        num_blocks, keeping = run.checkpoint.num_blocks, None
        members = Members(run.model, peer.directory, peer.pool, num_blocks=num_blocks, me=peer.peer_id)
        copier = Copier(members, clock, config.hold_every_s)
        try:
            uploader.add(run.shelf)
            on_event(Event("run", f"{run.model} ({run.spec.batch.steps} versions)"))
            keeping = await Keeping.open(config.folder, await asyncio.to_thread(model_of, run), members, peer.pool, on_event)
            if keeping is not None:
                keepers.open(run, keeping)
            with MetricsFile(config.folder) as metrics:
                noted = Notes(await asyncio.to_thread(read_noted, config.folder))
                journal = Journal(metrics, (*listeners, noted.add), clock)
                async with evaluating(run, data, config, peer, members, journal, on_event) as evaluator:
                    after: list[AfterStep] = [
                        Comings(members, journal).after,
                        Publisher(run.spec, members, peer.pool, clock, config.publish_every_s).after,
                        copier.after,
                        evaluator.after,
                    ]
                    after += [make(members, peer.pool) for make in also]
                    trainer = Trainer(run, data, peer, members, RunReports(run.spec, journal, on_event), after, keeping, clock)
                    trainers.append(trainer)
                    desk.open(run.model, trainer.turns)
                    journals.open(run.model, noted, lambda: trainer.turns.works_for)
                    await peer.directory.announce(lambda: _record(config.node, peer, run, keeping), (run.model.name,))
                    on_event(Event("ready"))
                    await trainer.train()
        finally:
            await copier.stop()
            if keeping is not None:
                await keeping.close()
            run.close()


async def _opened(config: NodeConfig, peer: Peer, data: RunData, progress: Progress) -> OpenRun:
    known_as = keyring.known_as(config.swarm, config.entry.key)
    naming = Naming.of(peer.ping, config.data_dir, known_as, config.accept_new_weights)
    return await RunOpener(peer, config.data_dir, naming, progress).by_file(data)


@contextlib.asynccontextmanager
async def evaluating(
    run: OpenRun, data: RunData, config: TrainConfig, peer: Peer, members: Members, journal: Journal, on_event: OnEvent
) -> AsyncIterator[Evaluator]:
    """The evaluator of a run; what it has under way at the end is waited for, if nothing failed, else cancelled."""
    validation = await asyncio.to_thread(open_validation, data, config.node.data_dir, lambda what, done, total: None)
    batches, num_blocks = batches_of(data, run.spec, validation), run.checkpoint.num_blocks
    loss = Evaluation(members, run.spec, random.Random(peer.peer_id))
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
    """Trains one run with others. Belongs to one event loop."""

    def __init__(
        self,
        run: OpenRun,
        data: RunData,
        peer: Peer,
        members: Members,
        reports: RunReports,
        after: Sequence[AfterStep] = (),
        keeping: Keeping | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """after: awaited in this order after each step of a run that this trainer coordinates, before the next one begins: what takes
        long starts a task of its own. keeping: the checkpoints that this process keeps."""
        self._after = after if keeping is None else (*after, keeping.after)
        self._keeping = keeping
        self._run, self._reports, self._contribution = run, reports, Contribution(clock)
        self._members = members
        pipeline = Pipeline(
            members=members, spec=run.spec, source=BatchSource(batches_of(data, run.spec)),
            clock=clock, rng=random.Random(peer.peer_id), on_wait=reports.waits, on_accused=self._accused,
        )  # fmt: skip
        desk = LeaseDesk(peer.peer_id, clock, lambda: pipeline.window)
        recovery = Recovery(members=members, clock=clock, own_kept=self._kept, on_wait=reports.waits, on_restore=reports.restores)
        coordinator = Coordinator(
            members=members, desk=desk, closing=Closing(members, run.spec), spec=run.spec,
            clock=clock, on_wait=reports.waits, recovery=recovery,
        )  # fmt: skip
        self.turns = Turns(
            me=peer.peer_id, others=Trainers(run.model, peer.peer_id, peer.directory, peer.pool),
            worker=Worker(run.model, pipeline, self._note, reports.begin, self._done), desk=desk, coordinator=coordinator,
            after=self._stepped, clock=clock, on_turn=lambda text: reports.say("trainer", text),
        )  # fmt: skip

    async def train(self) -> None:
        """From the version that the stages have, or a checkpoint, to the run's last one. NonFiniteGradientError as of `Turns.train`."""
        last = self._run.spec.batch.steps
        await self.turns.train(last)
        if self._keeping is not None:
            await self._keeping.finish(last)
        self._reports.say("trained", f"{self._run.model.name}: version {last} of {last}")

    def trained(self) -> Trained:
        """What this trainer has sent through the stages so far."""
        return self._contribution.as_trained(self._run.model, "trainer")

    def _note(self, finished: Finished) -> None:
        self._contribution.stepped(finished.version)
        self._reports.note(finished)

    def _accused(self, peer: PeerId, cause: SwarmError) -> None:
        stage = self._members.of(peer)
        self._reports.leaves_out((stage.record.name if stage else "") or short_peer(peer), cause)

    def _done(self, done: Done) -> None:
        self._contribution.add(self._run.spec.batch.batch_tokens // self._run.spec.num_micro_batches)

    async def _stepped(self, step: Step) -> None:
        for work in self._after:
            await work(step)

    async def _kept(self) -> Kept | None:
        return None if self._keeping is None else await self._keeping.kept()


def _record(config: NodeConfig, peer: Peer, run: OpenRun, keeping: Keeping | None) -> PeerRecord:
    record = PeerRecord(
        peer=peer.peer_id,
        name=config.name,
        software=software(),
        addresses=tuple(peer.addresses),
        certificate=peer.certificate,
        p2p_addresses=tuple(peer.multiaddrs),
        upload_bytes_s=config.upload_bytes_s,
        roles=tuple(Role(kind, run.model) for kind in (("trainer",) if keeping is None else ("trainer", "keeper"))),
    )
    return replace(record, reachable=peer.reachable).fitted()
