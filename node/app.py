"""A volunteer's node, from start to leaving.

`run_node` shows the whole sequence, from the first look at a checkpoint on.

The caller (the command line, a test) gets `Event`s, and ends the node by cancelling its task, as the order of an operator does:
the announcement is withdrawn, running steps are finished, and everything that was started is stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from node import hardware, metrics
from node.about import AboutHere
from node.config import NodeConfig
from node.device.thread import Device, DeviceConfig
from node.events import Event, OnEvent
from node.gradients.frozen_stages import FrozenStages
from node.hosting.model_source import OnFetch
from node.hosting.place import Place, Shared
from node.joining import meet, peer_config
from node.measuring import Measures, measuring
from node.operating.orders import Orders
from node.placement import neighbours
from node.placement.announcing import Announcement
from node.runs.node_run import NodeRun
from node.runs.pause_switch import PauseSwitch
from node.serving.dispatcher import Dispatcher
from node.serving.worked import Worked
from node.telling import keep_telling
from node.training.servicer import TrainingServicer
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from swarm import waiting
from swarm.bans import Bans
from swarm.meeting import keyring, running_nodes
from swarm.peer.peer import Peer
from swarm.suggestion import NodeCommand, invite_command
from swarm.waiting import Waits
from swarm.weights.uploader import Uploader

log = logging.getLogger(__name__)

LEAVE_S = 3.0
"""How long running steps and the withdrawal may take when we leave."""


async def run_node(
    config: NodeConfig,
    on_event: OnEvent,
    on_fetch: OnFetch = lambda progress: None,
    waits: Waits | None = None,
    switch: PauseSwitch | None = None,
) -> None:
    """Join the swarm and serve until this task is cancelled; then leave within LEAVE_S, and raise CancelledError.

    Returns if an operator has ordered this node to leave.

    switch: when a node that trains takes micro-batches; None = as `config` says.

    Whatever keeps the node from serving is raised as a SwarmError, after everything that was started has been stopped.
    """
    bans, dispatcher = Bans(), Dispatcher()
    config = replace(config, entry=replace(config.entry, bans=bans))
    orders = Orders(dispatcher, bans, on_event, is_test=config.is_test)
    with measuring(config.metrics, on_event) as measures:
        async with orders.until_left():
            await _run(config, on_event, on_fetch, waits or Waits(), switch, measures, dispatcher, orders)


async def _run(
    config: NodeConfig, on_event: OnEvent, on_fetch: OnFetch, waits: Waits, switch: PauseSwitch | None, measures: Measures | None,
    dispatcher: Dispatcher, orders: Orders,
) -> None:  # fmt: skip
    device = hardware.pick_device(config.device)
    uploader, device_thread = Uploader(config.upload_bytes_s), _device(config)
    frozen = FrozenStages(dispatcher.host_of, device_thread, lambda: hardware.room_bytes(device))
    passes = TrainingServicer(device_thread, frozen=frozen.stage_of, on_sent=uploader.spend)
    training = None if config.run is None else NodeRun(config, device_thread, passes, uploader, dispatcher, on_event, switch)
    about = AboutHere(device, device_thread.tally, tuple if training is None else training.trained)
    handlers = {**about.handlers(), **dispatcher.handlers(), **uploader.handlers(), **passes.handlers(), **orders.handlers()}
    handlers |= training.handlers() if training else {}
    async with Peer(peer_config(config, on_event), handlers) as peer:
        orders.keep_bans(peer, config.data_dir)
        passes.connect(peer.peer_id, peer.pool)
        if training is not None:
            training.connect(peer)
        with waits.on(waiting.JOINING):
            await meet(config, peer, on_event)
        announcement, places = Announcement(config, peer), list[Place]()
        orders.connect(peer, announcement)
        if measures is not None:
            _tell_measures(measures, peer, device_thread, dispatcher)
        shared = Shared(
            peer=peer, dispatcher=dispatcher, uploader=uploader, announcement=announcement, device=device, device_thread=device_thread,
            training=training, on_event=on_event, on_fetch=on_fetch, waits=waits,
        )  # fmt: skip
        try:
            each = config.of_each_model()
            for number, own in enumerate(each):
                place = Place(own, shared, num_to_load=len(each) - number)
                places.append(place)
                await place.take()
            known_as = keyring.known_as(config.swarm, config.entry.key)
            with running_nodes.told(config.data_dir, known_as, peer.peer_id, peer.multiaddrs):
                _invite(config, [place.presence.model for place in places], peer, on_event)
                await _stay(peer, places, training, None if config.is_quiet else on_event)  # until we are cancelled
        except asyncio.CancelledError:
            on_event(Event("leaving"))
            raise
        finally:
            passes.is_draining = True
            if training is not None:
                await training.end()
            await _leave(announcement, places)


def _tell_measures(measures: Measures, peer: Peer, device: Device, dispatcher: Dispatcher) -> None:
    """What is read anew whenever Prometheus asks."""
    counts, memory = measures.metrics, device.memory
    counts.read_from(metrics.NODE_PEERS, lambda: peer.num_neighbours)
    counts.read_from(metrics.NODE_FREE, lambda: max(0, memory.free_bytes))
    counts.read_from(metrics.NODE_USED, lambda: memory.used_bytes)
    counts.read_from(metrics.NODE_SESSIONS, lambda: dispatcher.num_sessions)
    counts.read_from(metrics.NODE_KEPT, lambda: sum([host.num_kept for host in dispatcher.hosts]))
    counts.read_from(metrics.NODE_WAITING, lambda: sum([host.num_waiting for host in dispatcher.hosts]))
    counts.read_from(metrics.NODE_BLOCKS, lambda: len(_hosted(dispatcher)))


def _hosted(dispatcher: Dispatcher) -> set[tuple[Weights, int]]:
    spans = [(host.served.weights, host.served.span) for host in dispatcher.hosts]
    return {(weights, block) for weights, span in spans for block in range(span.start, span.stop)}


def _device(config: NodeConfig) -> Device:
    return Device(config=DeviceConfig() if config.train_share is None else DeviceConfig(train_share=config.train_share))


async def _stay(peer: Peer, places: Sequence[Place], training: NodeRun | None, on_work: OnEvent | None) -> None:
    """Measure the ways to our neighbours, look for a better place, and tell what was done, until cancelled or a fault ends one of them."""

    async def successors() -> list[PeerRecord]:
        return [record for place in places for record in await place.presence.look_closely()]

    def worked() -> Worked:
        return sum((place.presence.worked() for place in places), Worked())

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(neighbours.keep_measuring(peer, successors), name="neighbours")]
    tasks += [asyncio.create_task(keep_looking, name="placement") for place in places if (keep_looking := place.keep_looking())]
    if training is not None:
        tasks.append(asyncio.create_task(training.keep_up(), name="training"))
    if on_work is not None:
        trained = (lambda: "") if training is None else training.contributed
        telling = keep_telling(worked, lambda: peer.num_neighbours, on_work, asyncio.sleep, trained)
        tasks.append(asyncio.create_task(telling, name="telling"))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _invite(config: NodeConfig, models: Sequence[ModelId], peer: Peer, on_event: OnEvent) -> None:
    """The line that the next volunteer types, who needs no file of the model, for each; and the word that scripts wait for."""
    for model in models:
        what = [model.name] if config.run is None else ["--run", model.name]
        if config.entry.key is None:
            line = NodeCommand(swarm=config.swarm, peer=peer.multiaddrs[0]).text(*what)
        else:  # an invitation holds the key, and these lines are kept in logs
            command = invite_command(config.swarm, config.data_dir)
            line = f"{command} prints an invitation to this private swarm; with it: swarm node {' '.join(what)} --join INVITATION"
        on_event(Event("invite", line))
    on_event(Event("ready"))


async def _leave(announcement: Announcement, places: Sequence[Place]) -> None:
    """Withdraw the announcement, finish running steps; whatever takes longer is left to the peer's own closing."""
    try:
        async with asyncio.timeout(LEAVE_S):
            await asyncio.gather(announcement.withdraw(), announcement.stop_serving())
    except TimeoutError:
        log.warning("left after %.0f s without waiting for the rest of the running steps", LEAVE_S)
    finally:
        for place in places:
            place.close()
