"""A trainer: data and no parameters; several may train one run.

`run_trainer` shows the whole sequence; what it does in the run is in `part.py`. The caller gets `Event`s and a line of metrics for
each version, and ends it by cancelling its task: stages keep what they have, and another trainer goes on from there. This is where a
gradient's path begins (G1); which trainer coordinates is found in `swarm/training/turns.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.config import NodeConfig
from node.events import Event, OnEvent
from node.joining import meet, peer_config, record_of
from node.measuring import measuring
from node.metrics import TRAINER
from node.runs.keeper_server import model_of
from node.runs.keeping import Keeping
from node.runs.opening import OpenRun, Progress, RunData, RunOpener, open_validation, read_data, reading
from node.runs.trainer.batch_source import batches_of, drawn
from node.runs.trainer.copier import HOLD_EVERY_S, Copier
from node.runs.trainer.evaluator import Evaluator
from node.runs.trainer.journal import Comings, Journal
from node.runs.trainer.notes import Notes, read_noted
from node.runs.trainer.part import AfterStep, Joined, TrainerPart
from node.runs.trainer.publisher import PUBLISH_EVERY_S, Publisher
from node.runs.trainer.run_reports import RunReports
from node.runs.trainer.sampler import ServedSamples
from node.runs.trainer.services import TrainerServices
from node.training.metrics import MetricsFile, OnRow
from node.training.spec.run_file import RunFile
from protocols.records import PeerRecord
from protocols.roles import Role
from swarm import waiting
from swarm.clock import SYSTEM, Clock
from swarm.meeting import keyring
from swarm.peer.peer import Peer
from swarm.rpc.pool import ChannelPool
from swarm.training.evaluation import Evaluation
from swarm.training.members import Members
from swarm.waiting import Waits
from swarm.weights.naming import Naming

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
        await _join(config, on_event, listeners, clock, also, waits or Waits())


async def _join(
    config: TrainConfig,
    on_event: OnEvent,
    listeners: Sequence[OnRow],
    clock: Clock,
    also: Sequence[MakeWork],
    waits: Waits,
) -> None:
    services = TrainerServices(config.node.upload_bytes_s)
    with waits.on(waiting.READING_DATA) as progress:
        tell = reading(progress, on_event)
        data = await asyncio.to_thread(lambda: read_data(config.file, config.node.data_dir, tell, is_needed=True))
    async with Peer(peer_config(config.node, on_event), services.handlers()) as peer:
        with waits.on(waiting.JOINING):
            await meet(config.node, peer, on_event)
        with waits.on(waiting.loading("version 0")) as progress:
            run = await _opened(config.node, peer, data, reading(progress, on_event))
        with contextlib.closing(run):
            num_blocks = run.checkpoint.num_blocks
            members = Members(run.model, peer.directory, peer.pool, num_blocks=num_blocks, me=peer.peer_id)
            joined = Joined(run=run, data=data, peer=peer, members=members)
            services.uploader.add(run.shelf)
            on_event(Event("run", f"{run.model} ({run.spec.batch.steps} versions)"))
            await _take_part(joined, services, config, on_event, listeners, clock, also)


async def _take_part(
    joined: Joined,
    services: TrainerServices,
    config: TrainConfig,
    on_event: OnEvent,
    listeners: Sequence[OnRow],
    clock: Clock,
    also: Sequence[MakeWork],
) -> None:
    run, peer, members = joined.run, joined.peer, joined.members
    async with contextlib.AsyncExitStack() as held:
        keeping = await Keeping.open(config.folder, await asyncio.to_thread(model_of, run), members, peer.pool, on_event)
        if keeping is not None:
            held.push_async_callback(keeping.close)
            services.keepers.open(run, keeping)
        copier = Copier(members, clock, config.hold_every_s)
        held.push_async_callback(copier.stop)
        noted = Notes(await asyncio.to_thread(read_noted, config.folder))
        journal = Journal(held.enter_context(MetricsFile(config.folder)), (*listeners, noted.add), clock)
        evaluator = await held.enter_async_context(evaluating(joined, config, journal, on_event))
        publisher = Publisher(run.spec, members, peer.pool, clock, config.publish_every_s)
        after: list[AfterStep] = [Comings(members, journal).after, publisher.after, copier.after, evaluator.after]
        after += [make(members, peer.pool) for make in also]
        part = TrainerPart(joined, RunReports(run.spec, journal, on_event), after, keeping, clock)
        services.open(run.model, part, noted)
        await peer.directory.announce(lambda: _record(config.node, peer, run, keeping), (run.model.name,))
        on_event(Event("ready"))
        await part.train()


async def _opened(config: NodeConfig, peer: Peer, data: RunData, progress: Progress) -> OpenRun:
    known_as = keyring.known_as(config.swarm, config.entry.key)
    naming = Naming.of(peer.ping, config.data_dir, known_as, config.accept_new_weights)
    return await RunOpener(peer, config.data_dir, naming, progress).by_file(data)


@contextlib.asynccontextmanager
async def evaluating(joined: Joined, config: TrainConfig, journal: Journal, on_event: OnEvent) -> AsyncIterator[Evaluator]:
    """The evaluator of a run; what it has under way at the end is waited for, if nothing failed, else cancelled."""
    run, data, peer, members = joined.run, joined.data, joined.peer, joined.members
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


def _record(config: NodeConfig, peer: Peer, run: OpenRun, keeping: Keeping | None) -> PeerRecord:
    roles = tuple(Role(kind, run.model) for kind in (("trainer",) if keeping is None else ("trainer", "keeper")))
    return replace(record_of(config, peer), roles=roles, reachable=peer.reachable).fitted()
