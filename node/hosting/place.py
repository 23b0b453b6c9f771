"""One model at a node: weights, span, host and moves."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from node import hardware
from node.config import NodeConfig
from node.device.thread import Device
from node.events import Event, OnEvent
from node.hosting.host_maker import HostMaker
from node.hosting.model_source import ModelSource, OnFetch
from node.placement import span_choice
from node.placement.announcing import Announcement
from node.placement.liveness import Liveness
from node.placement.moving import Mover
from node.placement.presence import Presence
from node.placement.proving import Prover
from node.serving import handover
from node.serving.dispatcher import Dispatcher
from node.serving.host import Host
from protocols.errors import ConfigError
from protocols.ids import ModelId, Span
from protocols.words import counted
from swarm.models.checkpoint import Checkpoint
from swarm.peer.peer import Peer
from swarm.placement.choose import Capacity
from swarm.waiting import Waits
from swarm.weights.uploader import Uploader


class Training(Protocol):
    """A node's part in a training run (`node/runs/stage/node_run.py`): its model is the run's, and its host's units are trained."""

    def source(self, *arguments: Any) -> ModelSource:
        """Where the run's version 0 comes from; arguments as of `ModelSource`."""
        ...

    async def begin(self, host: Host, maker: HostMaker, presence: Presence) -> None:
        """The host serves version 0: train its units from now on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all models of a node have in common."""

    peer: Peer
    dispatcher: Dispatcher
    uploader: Uploader
    announcement: Announcement
    device: str
    device_thread: Device
    training: Training | None = None
    """The run that this node takes part in."""
    on_event: OnEvent
    on_fetch: OnFetch
    waits: Waits


class Place:
    """`take` it once, then `keep_looking` for a better one; `close`, however far it came."""

    presence: Presence

    def __init__(self, config: NodeConfig, shared: Shared, num_to_load: int) -> None:
        """num_to_load: models of this node that are not loaded yet, this one included."""
        self._config, self._shared, self._num_to_load = config, shared, num_to_load
        arguments = config, shared.peer, shared.uploader, shared.on_event, shared.on_fetch, shared.waits
        self._source = ModelSource(*arguments) if shared.training is None else shared.training.source(*arguments)
        self._mover: Mover | None = None

    async def take(self) -> None:
        """Find the model, choose a span, load it, serve it, and say so."""
        shared, config = self._shared, self._config
        checkpoint, model = await self._open_model()
        self.presence = Presence(config, shared.peer, model, checkpoint.num_blocks, shared.announcement)
        dtype = await self._choose_dtype(checkpoint)
        ends = config.ends if shared.training is None else True  # a run trains them beside the outer blocks
        maker = HostMaker(
            source=self._source, checkpoint=checkpoint, presence=self.presence, device=shared.device,
            device_thread=shared.device_thread, num_to_load=self._num_to_load,
            promised_bytes=max(0, shared.device_thread.memory.free_bytes), dtype=dtype, ends=ends,
            on_event=shared.on_event, waits=shared.waits,
        )  # fmt: skip
        capacity = span_choice.make_capacity(checkpoint, dtype, maker.plan_bytes(), config.num_blocks, ends)
        host = await self._choose_span(capacity, maker)
        await host.start(shared.peer.pool, shared.peer.gate)
        await handover.begin(host, shared.dispatcher, self.presence)
        if shared.training is not None:
            await shared.training.begin(host, maker, self.presence)
        self._mover = None if self.presence.stays else self._make_mover(host, capacity, maker)

    def keep_looking(self) -> Coroutine[Any, Any, None] | None:
        """Looks again and again if the swarm needs this node elsewhere; None: it stays."""
        return None if self._mover is None else self._mover.keep_looking(random.Random(self._shared.peer.peer_id))

    def close(self) -> None:
        """Give the weights' files back."""
        self._source.close()

    async def _open_model(self) -> tuple[Checkpoint, ModelId]:
        config = self._config
        checkpoint, model, _manifest = await self._source.open()
        if config.blocks is not None and config.blocks.stop > checkpoint.num_blocks:
            raise ConfigError(
                f"--blocks {config.blocks} goes beyond the model, which has {counted(checkpoint.num_blocks, 'block')}; "
                f"give start:stop within 0:{checkpoint.num_blocks}"
            )
        if config.ends and config.blocks is not None and config.blocks.start > 0 and config.blocks.stop < checkpoint.num_blocks:
            raise ConfigError(
                f"--ends belong beside the first or the last block, --blocks {config.blocks} has neither; "
                f"give a span that starts at 0 or stops at {checkpoint.num_blocks}, or leave --ends out"
            )
        self._shared.on_event(Event("model", f"{model.name}@{model.digest} ({counted(checkpoint.num_blocks, 'block')})"))
        return checkpoint, model

    async def _choose_dtype(self, checkpoint: Checkpoint) -> str:
        presence, on_event, device = self.presence, self._shared.on_event, self._shared.device
        others = await presence.look()
        if digests := span_choice.other_weights(presence.last_seen, presence.model):
            listed = ", ".join(digest[:12] for digest in digests[:3]) + (", …" if len(digests) > 3 else "")
            text = f"others serve {presence.model.name} with other weights ({listed}); they never mix with ours"
            on_event(Event("warning", text))
        stored, usual = span_choice.stored_dtype(checkpoint), span_choice.usual_dtype(others)
        dtype = hardware.pick_dtype(self._config.dtype, stored, device, served=usual)
        on_event(Event("device", f"{device}, {dtype.name} ({dtype.reason})"))
        presence.dtype = dtype.name
        return dtype.name

    async def _choose_span(self, capacity: Capacity, maker: HostMaker) -> Host:
        """Choose a span, then load it."""
        presence, model, on_event = self.presence, self.presence.model, self._shared.on_event
        presence.capacity_blocks = 0 if presence.stays else capacity.blocks_anywhere()
        choice = await span_choice.settle(
            self._config, presence.me, capacity, presence.look, presence.join, is_alone=presence.is_alone
        )
        on_event(Event("placement", f"blocks {choice.span}: {choice.reason}"))
        host = await maker.make(choice.span)
        on_event(
            Event("serving", f"blocks {choice.span} of {model.name}@{model.digest[:12]} ({host.engine.mode}, {maker.dtype})")
        )
        return host

    def _make_mover(self, host: Host, capacity: Capacity, maker: HostMaker) -> Mover:
        peer = self._shared.peer

        async def make(span: Span) -> Host:
            host = await maker.make(span)
            await host.start(peer.pool, peer.gate)
            return host

        return Mover(
            host=host,
            presence=self.presence,
            dispatcher=self._shared.dispatcher,
            make=make,
            capacity=capacity,
            free_bytes=maker.room_bytes,
            liveness=Liveness(peer.ping),
            prover=Prover(peer.identity, peer.pool, peer.ping),
            on_event=self._shared.on_event,
        )
