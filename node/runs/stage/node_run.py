"""The run that a node takes part in, until it leaves.

`node/hosting/place.py` chooses the blocks and serves version 0 as for any model; this makes the model the run's, and trains what is hosted.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from node.config import NodeConfig
from node.device.thread import Device
from node.events import Event, OnEvent
from node.hosting.host_maker import HostMaker
from node.hosting.model_source import ModelSource
from node.hosting.replacing import Replacer
from node.placement.presence import Presence
from node.runs.keeper_server import model_of
from node.runs.keeping import Keeping, StageHere
from node.runs.opening import OpenRun, RunOpener, read_data
from node.runs.stage.pause_switch import PauseSwitch
from node.runs.stage.run_part import RunPart, RunSettings
from node.runs.stage.run_source import RunSource
from node.runs.stage.runs_here import RunsHere
from node.serving.dispatcher import Dispatcher
from node.serving.host import Host
from node.training.servicer import TrainingServicer
from protocols.about import Trained
from protocols.state import Form
from protocols.units import Blocks, Ends, Unit
from swarm.meeting import keyring
from swarm.peer.peer import Peer
from swarm.rpc.call import Handlers
from swarm.training.members import Members
from swarm.training.unit_forms import parameter_form
from swarm.weights.naming import Naming
from swarm.weights.uploader import Uploader

log = logging.getLogger(__name__)

OLDER_VERSIONS = 1
"""Versions that go on serving beside the newest one: a session begins and ends within the time between two publications, mostly."""


class NodeRun:
    """Made before the peer listens; `connect` once it does."""

    def __init__(
        self,
        config: NodeConfig,
        device: Device,
        servicer: TrainingServicer,
        uploader: Uploader,
        dispatcher: Dispatcher,
        on_event: OnEvent,
        switch: PauseSwitch | None = None,
    ) -> None:
        """config: its `run` is set. switch: when it takes micro-batches; None = as `config` says, and nothing changes it."""
        assert config.run is not None
        self._config, self._device, self._dispatcher, self._on_event = config, device, dispatcher, on_event
        self._runs = RunsHere(servicer, uploader.turn, uploader.spend)
        self._switch = switch or PauseSwitch(config.train_hours)
        self._peer: Peer | None = None
        self._source: RunSource | None = None
        self._part: RunPart | None = None
        self._recompute: Any = "auto"
        self._compute: Any = "float32"
        """As the run file says, or its defaults: they are this machine's choice, and no part of the run's spec."""

    def handlers(self) -> Handlers:
        """Of training, by method name."""
        return self._runs.handlers()

    def connect(self, peer: Peer) -> None:
        """The peer listens."""
        self._peer = peer
        self._runs.connect(peer)

    def source(self, *arguments: Any) -> ModelSource:
        """As `hosting.place.Training.source`."""
        self._source = RunSource(self._open, *arguments)
        return self._source

    async def begin(self, host: Host, maker: HostMaker, presence: Presence) -> None:
        """As `hosting.place.Training.begin`."""
        assert self._peer is not None and self._source is not None
        peer, run = self._peer, self._source.run

        async def renew(old: Host) -> Host:
            renewed = await maker.renew(old)
            await renewed.start(peer.pool, peer.gate)
            return renewed

        replacer = Replacer(
            host, renew=renew, dispatcher=self._dispatcher, presence=presence, free_bytes=maker.room_bytes, keep=OLDER_VERSIONS
        )
        keeping = None if self._config.keep is None else await self._keep(self._config.keep / run.model.name, run, peer)
        settings = RunSettings(
            run=run.model, spec=run.spec, num_blocks=run.checkpoint.num_blocks, forms=lambda: forms_of(run), recompute=self._recompute,
            compute=self._compute, keeping=keeping,
        )  # fmt: skip
        self._part = await RunPart.open(settings, host, replacer, peer, self._device, self._runs, self._on_event)
        self._switch.tell(self._part.pause)
        await self._part.begin()
        presence.roles = self._part.roles
        await presence.tell()

    async def _keep(self, folder: Path, run: OpenRun, peer: Peer) -> Keeping | None:
        """Checkpoints of the run, as `Keeping.open`."""
        members = Members(run.model, peer.directory, peer.pool, num_blocks=run.checkpoint.num_blocks, me=peer.peer_id)
        model = await asyncio.to_thread(model_of, run)
        stage = StageHere(
            versions=lambda: self._trained.taking_part.versions, take=lambda *wanted: self._trained.kept.take(*wanted)
        )
        return await Keeping.open(folder, model, members, peer.pool, self._on_event, stage)

    @property
    def _trained(self) -> RunPart:
        """From `begin` on."""
        assert self._part is not None
        return self._part

    async def keep_up(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._trained.keep_up(), self._switch.follow(self._trained.pause))

    def contributed(self) -> str:
        """What this machine has given so far, as a line; "" if nothing came to it since the last call."""
        return "" if self._part is None else self._part.trained.contribution.news()

    def trained(self) -> list[Trained]:
        """All that this machine has given, as others are told it."""
        part, source = self._part, self._source
        return [] if part is None or source is None else [part.trained.contribution.as_trained(source.run.model, "stage")]

    async def end(self) -> None:
        """Take no new passes, and end what is under way."""
        if self._part is not None:
            if self._part.trained.contribution.num_versions:
                self._on_event(Event("contributed", str(self._part.trained.contribution)))
            await self._part.end()
        await self._runs.stop()

    async def _open(self) -> OpenRun:
        config, peer, given = self._config, self._peer, self._config.run
        assert peer is not None and given is not None
        naming = Naming.of(
            peer.ping, config.data_dir, keyring.known_as(config.swarm, config.entry.key), config.accept_new_weights
        )
        opener = RunOpener(peer, config.data_dir, naming, self._tell)
        if isinstance(given, str):
            return await opener.by_name(given)
        self._recompute, self._compute = given.training.recompute, given.training.compute
        data = await asyncio.to_thread(read_data, given, config.data_dir, self._tell, is_needed=False)
        return await opener.by_file(data)

    def _tell(self, what: str, done: int, total: int) -> None:
        if done == total:
            self._on_event(Event("training", f"{total:,} {what}"))


def forms_of(run: OpenRun) -> dict[Unit, Form]:
    """Of the parameters of all units of a run."""
    config, blocks = run.checkpoint.config, [Blocks(number, number + 1) for number in range(run.checkpoint.num_blocks)]
    return {**{unit: parameter_form(config, unit) for unit in blocks}, Ends(): parameter_form(config, Ends())}
