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

from node.config import NodeConfig
from node.events import Event, OnEvent
from node.hosting.model_source import OnFetch
from node.hosting.place import Place, Shared
from node.joining import meet, peer_config
from node.measuring import Measures, measuring
from node.node_services import NodeServices
from node.placement import neighbours
from node.placement.announcing import Announcement
from node.runs.stage.node_run import NodeRun
from node.runs.stage.pause_switch import PauseSwitch
from node.serving.worked import Worked
from node.telling import keep_telling
from protocols.ids import ModelId
from protocols.records import PeerRecord
from swarm import waiting
from swarm.bans import Bans
from swarm.meeting import keyring, running_nodes
from swarm.peer.peer import Peer
from swarm.suggestion import NodeCommand, invite_command
from swarm.waiting import Waits

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
    bans = Bans()
    config = replace(config, entry=replace(config.entry, bans=bans))
    with measuring(config.metrics, on_event) as measures:
        services = NodeServices(config, bans, on_event, switch)
        async with services.orders.until_left():
            await _run(config, services, on_event, on_fetch, waits or Waits(), measures)


async def _run(
    config: NodeConfig,
    services: NodeServices,
    on_event: OnEvent,
    on_fetch: OnFetch,
    waits: Waits,
    measures: Measures | None,
) -> None:
    async with Peer(peer_config(config, on_event), services.handlers()) as peer:
        services.connect(peer)
        with waits.on(waiting.JOINING):
            await meet(config, peer, on_event)
        announcement = Announcement(config, peer)
        services.orders.connect(peer, announcement)
        if measures is not None:
            services.tell(measures, peer)
        shared = Shared(
            peer=peer, dispatcher=services.dispatcher, uploader=services.uploader, announcement=announcement,
            device=services.device_name, device_thread=services.device, training=services.training,
            on_event=on_event, on_fetch=on_fetch, waits=waits,
        )  # fmt: skip
        await _serve(config, services, shared)


async def _serve(config: NodeConfig, services: NodeServices, shared: Shared) -> None:
    """Host all models until this task is cancelled; whatever ends it, the swarm is told."""
    peer, on_event, places = shared.peer, shared.on_event, list[Place]()
    try:
        each = config.of_each_model()
        for number, own in enumerate(each):
            place = Place(own, shared, num_to_load=len(each) - number)
            places.append(place)
            await place.take()
        known_as = keyring.known_as(config.swarm, config.entry.key)
        with running_nodes.told(config.data_dir, known_as, peer.peer_id, peer.multiaddrs):
            _invite(config, [place.presence.model for place in places], peer, on_event)
            await _stay(peer, places, services.training, None if config.is_quiet else on_event)
    except asyncio.CancelledError:
        on_event(Event("leaving"))
        raise
    finally:
        services.passes.is_draining = True
        if services.training is not None:
            await services.training.end()
        await _leave(shared.announcement, places)


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
