"""A volunteer's node, from start to leaving.

`run_node` shows the whole sequence, from the first look at a checkpoint on.

Whoever runs it (the command line, a test) gets `Event`s, and ends it by cancelling its task: the announcement is withdrawn,
running steps are finished, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from node import choosing, handover, hardware, neighbours
from node.config import NodeConfig
from node.device.thread import Device
from node.doors import Doors
from node.events import Event, OnEvent
from node.hosting import HostMaker
from node.liveness import Liveness
from node.model_source import ModelSource, OnFetch
from node.moving import Mover
from node.presence import Presence
from node.proving import Prover
from node.serving.host import Host
from node.telling import keep_telling
from protocols.errors import ConfigError, PeerUnreachableError
from protocols.ids import ModelId, Span
from protocols.words import counted
from swarm import keyring, known_peers, running_nodes, waiting
from swarm.bootstrap import FindConfig
from swarm.models.checkpoint import Checkpoint
from swarm.peer import Peer, PeerConfig
from swarm.placement.choose import Capacity
from swarm.suggestion import NodeCommand, invite_command
from swarm.waiting import Waits
from swarm.weights.uploader import Uploader

log = logging.getLogger(__name__)

JOIN_WAIT_S = 10.0
"""How long a node waits for the first answer of the peers it was given, before it serves on its own and keeps trying."""

LEAVE_S = 3.0
"""How long running steps and the withdrawal may take when we leave."""


async def run_node(
    config: NodeConfig, on_event: OnEvent, on_fetch: OnFetch = lambda progress: None, waits: Waits | None = None
) -> None:
    """Join the swarm and serve until this task is cancelled; then leave within LEAVE_S, and raise CancelledError.

    Whatever keeps the node from serving is raised as a SwarmError, after everything that was started has been stopped.
    """
    waits = waits or Waits()
    device = hardware.pick_device(config.device)
    doors, uploader = Doors(), Uploader(config.upload_bytes_s)
    async with Peer(_peer_config(config, on_event), {**doors.handlers(), **uploader.handlers()}) as peer:
        with waits.on(waiting.JOINING):
            await _meet(config, peer, on_event)
        source = ModelSource(config, peer, uploader, on_event, on_fetch, waits)
        checkpoint, model = await _open_model(source, config, on_event)
        presence = Presence(config, peer, model, checkpoint.num_blocks)
        try:
            dtype = await _choose_dtype(config, device, checkpoint, presence, on_event)
            maker = HostMaker(
                source=source, checkpoint=checkpoint, presence=presence, device=device, device_thread=Device(), dtype=dtype,
                ends=config.ends, on_event=on_event, waits=waits,
            )  # fmt: skip
            capacity = choosing.make_capacity(checkpoint, dtype, hardware.room_bytes(device), config.num_blocks, config.ends)
            host = await _take_a_place(config, capacity, maker, on_event)
            await host.start(peer.pool, peer.gate)
            await handover.begin(host, doors, presence)
            known_as = keyring.known_as(config.swarm, config.entry.key)
            with running_nodes.told(config.data_dir, known_as, peer.peer_id, peer.multiaddrs):
                _invite(config, model, peer, on_event)
                mover = None if presence.stays else _mover(peer, host, capacity, doors, maker, on_event)
                await _stay(peer, presence, mover, None if config.is_quiet else on_event)  # until we are cancelled
        except asyncio.CancelledError:
            on_event(Event("leaving"))
            raise
        finally:
            await _leave(presence)
            source.close()


async def _open_model(source: ModelSource, config: NodeConfig, on_event: OnEvent) -> tuple[Checkpoint, ModelId]:
    checkpoint, model, _manifest = await source.open()
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
    on_event(Event("model", f"{model.name}@{model.digest} ({counted(checkpoint.num_blocks, 'block')})"))
    return checkpoint, model


async def _meet(config: NodeConfig, peer: Peer, on_event: OnEvent) -> None:
    """Say who we are, and wait a moment for the given peers: what they know decides our place."""
    on_event(Event("peer", peer.peer_id))
    for address in peer.multiaddrs:
        on_event(Event("multiaddr", address))
    if config.entry.key:
        on_event(Event("private", f"swarm `{config.swarm}` (key {config.entry.key.label})"))
    with contextlib.suppress(PeerUnreachableError):  # its log says so, and it keeps trying
        await peer.joined(JOIN_WAIT_S)
    if peer.refusal:
        raise peer.refusal
    if not config.peers and not peer.num_neighbours:
        on_event(Event("alone", peer.alone))


async def _choose_dtype(config: NodeConfig, device: str, checkpoint: Checkpoint, presence: Presence, on_event: OnEvent) -> str:
    others = await presence.look()
    if digests := choosing.other_weights(presence.last_seen, presence.model):
        listed = ", ".join(digest[:12] for digest in digests[:3]) + (", …" if len(digests) > 3 else "")
        on_event(Event("warning", f"others serve {presence.model.name} with other weights ({listed}); they never mix with ours"))
    dtype = hardware.pick_dtype(config.dtype, choosing.stored_dtype(checkpoint), device, served=choosing.usual_dtype(others))
    on_event(Event("device", f"{device}, {dtype.name} ({dtype.reason})"))
    presence.dtype = dtype.name
    return dtype.name


async def _take_a_place(config: NodeConfig, capacity: Capacity, maker: HostMaker, on_event: OnEvent) -> Host:
    """Choose a span, then load it."""
    presence, model = maker.presence, maker.presence.model
    presence.capacity_blocks = 0 if presence.stays else capacity.blocks_anywhere()
    choice = await choosing.settle(config, presence.me, capacity, presence.look, presence.join, is_alone=presence.is_alone)
    on_event(Event("placement", f"blocks {choice.span}: {choice.reason}"))
    host = await maker.make(choice.span)
    on_event(Event("serving", f"blocks {choice.span} of {model.name}@{model.digest[:12]} ({host.engine.mode}, {maker.dtype})"))
    return host


def _mover(peer: Peer, host: Host, capacity: Capacity, doors: Doors, maker: HostMaker, on_event: OnEvent) -> Mover:
    async def make(span: Span) -> Host:
        host = await maker.make(span)
        await host.start(peer.pool, peer.gate)
        return host

    return Mover(
        host=host,
        presence=maker.presence,
        doors=doors,
        make=make,
        capacity=capacity,
        free_bytes=lambda: hardware.room_bytes(maker.device),
        liveness=Liveness(peer.ping),
        prover=Prover(peer.identity, peer.pool, peer.ping),
        on_event=on_event,
    )


async def _stay(peer: Peer, presence: Presence, mover: Mover | None, on_work: OnEvent | None) -> None:
    """Measure the ways to our neighbours, look for a better place, and tell what was done, until cancelled or a fault ends one of them."""
    tasks = [asyncio.create_task(neighbours.keep_measuring(peer, presence.look_closely), name="neighbours")]
    if mover is not None:
        tasks.append(asyncio.create_task(mover.keep_looking(random.Random(peer.peer_id)), name="placement"))
    if on_work is not None:
        telling = keep_telling(presence.worked, lambda: peer.num_neighbours, on_work, asyncio.sleep)
        tasks.append(asyncio.create_task(telling, name="telling"))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _invite(config: NodeConfig, model: ModelId, peer: Peer, on_event: OnEvent) -> None:
    """The line that the next volunteer types, who needs no file of the model, and the word that scripts wait for."""
    if config.entry.key is None:
        line = NodeCommand(swarm=config.swarm, peer=peer.multiaddrs[0]).text(model.name)
    else:  # an invitation holds the key, and these lines are kept in logs
        command = invite_command(config.swarm, config.data_dir)
        line = f"{command} prints an invitation to this private swarm; with it: swarm node {model.name} --join INVITATION"
    on_event(Event("invite", line))
    on_event(Event("ready"))


async def _leave(presence: Presence) -> None:
    """Withdraw the announcement, finish running steps; whatever takes longer is left to the peer's own closing."""
    try:
        async with asyncio.timeout(LEAVE_S):
            await asyncio.gather(presence.withdraw(), presence.stop_serving())
    except TimeoutError:
        log.warning("left after %.0f s without waiting for the rest of the running steps", LEAVE_S)


def _peer_config(config: NodeConfig, on_event: OnEvent) -> PeerConfig:
    def tell(is_joined: bool, text: str) -> None:
        if is_joined:  # while nobody answers, the peer's log says so
            on_event(Event("joined", text.removeprefix("joined: ")))

    return PeerConfig(
        swarm=config.swarm,
        bootstrap=config.peers,
        find=FindConfig(
            known_peers=known_peers.file_of(config.data_dir, keyring.known_as(config.swarm, config.entry.key)),
            lan=config.lan,
            on_unnamed=lambda text: on_event(Event("warning", text)),
            may_join=config.may_join,
        ),
        listen=config.listen,
        announce=config.announce,
        data_dir=config.data_dir,
        identity_path=config.identity,
        name=config.name,
        entry=config.entry,
        on_join=tell,
    )
