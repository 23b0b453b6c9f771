"""A volunteer's node, from its first look at a checkpoint to its leaving: `run_node` tells the story.

Whoever runs it (the command line, a test) gets `Event`s, and ends it by cancelling its task: the announcement is withdrawn,
running steps are finished, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from node import choosing, hardware, neighbours
from node.config import DEFAULT_SWARM, NodeConfig
from node.serving.engine import Engine, choose_engine
from node.serving.host import Host
from protocols import services
from protocols.errors import ConfigError, DrainingError, PeerUnreachableError
from protocols.ids import ModelId, Span
from protocols.records import MAX_ROUND_TRIPS, PeerRecord, ServedSpan
from protocols.weights import Manifest
from swarm.inference.grants import Served
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.digest import build_manifest
from swarm.models.loading import load_span
from swarm.models.resolve import name_in_swarm, resolve
from swarm.models.sizes import kv_bytes_per_token, span_bytes
from swarm.peer import Peer, PeerConfig, software
from swarm.rpc.call import Call, Handler, Handlers
from swarm.rpc.stream import Stream

log = logging.getLogger(__name__)

JOIN_WAIT_S = 10.0
"""How long a node waits for the first answer of the peers it was given, before it serves on its own and keeps trying."""

KV_SHARE = 0.8
"""Share of the memory left beside the weights that sessions may take; the rest is for activations."""

LEAVE_S = 3.0
"""How long running steps and the withdrawal may take when we leave."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person, or a script, wants to know: one line, `kind: text`."""

    kind: str
    text: str = ""


OnEvent = Callable[[Event], None]


async def run_node(config: NodeConfig, on_event: OnEvent) -> None:
    """Join the swarm and serve until this task is cancelled; then leave within LEAVE_S, and raise CancelledError.

    Whatever keeps the node from serving is raised as a SwarmError, after everything that was started has been stopped.
    """
    device = hardware.pick_device(config.device)
    checkpoint, model, manifest = await asyncio.to_thread(_open_model, config, on_event)
    doors = Doors()
    async with Peer(_peer_config(config, on_event), doors.handlers()) as peer:
        await _meet(peer, on_event)
        presence = Presence(config, peer, model, checkpoint.num_blocks)
        try:
            host = await _take_a_place(config, device, checkpoint, manifest, presence, on_event)
            await host.start(peer.pool)
            await presence.serve(host)
            doors.open(host)
            _invite(config, peer, on_event)
            await neighbours.keep_measuring(peer, presence.look_closely)  # until we are cancelled
        except asyncio.CancelledError:
            on_event(Event("leaving"))
            raise
        finally:
            await _leave(presence)


def _open_model(config: NodeConfig, on_event: OnEvent) -> tuple[Checkpoint, ModelId, Manifest]:
    """Files, name and digest of the model. The first time each weight is read once, so it may take a while."""
    checkpoint = open_checkpoint(resolve(config.model))
    if config.blocks is not None and config.blocks.stop > checkpoint.num_blocks:
        raise ConfigError(
            f"--blocks {config.blocks} goes beyond the model, which has {checkpoint.num_blocks} blocks; "
            f"give start:stop within 0:{checkpoint.num_blocks}"
        )
    manifest = build_manifest(checkpoint, config.data_dir / "digests")
    model = ModelId(config.model_name or name_in_swarm(config.model), manifest.digest)
    on_event(Event("model", f"{model.name}@{model.digest} ({checkpoint.num_blocks} blocks)"))
    return checkpoint, model, manifest


async def _meet(peer: Peer, on_event: OnEvent) -> None:
    """Say who we are, and wait a moment for the given peers: what they know decides our place."""
    on_event(Event("peer", peer.peer_id))
    for address in peer.multiaddrs:
        on_event(Event("multiaddr", address))
    with contextlib.suppress(PeerUnreachableError):  # its log says so, and it keeps trying
        await peer.joined(JOIN_WAIT_S)
    if peer.refusal:
        raise peer.refusal


async def _take_a_place(
    config: NodeConfig, device: str, checkpoint: Checkpoint, manifest: Manifest, presence: Presence, on_event: OnEvent
) -> Host:
    """Choose number format and span, then load the span."""
    others = await presence.look()
    for digest in choosing.other_weights(presence.last_seen, presence.model):
        on_event(Event("warning", f"others serve {presence.model.name} with other weights ({digest[:12]}); the two never mix"))
    dtype = hardware.pick_dtype(config.dtype, choosing.stored_dtype(checkpoint), device, served=choosing.usual_dtype(others))
    on_event(Event("device", f"{device}, {dtype.name} ({dtype.reason})"))
    presence.dtype = dtype.name
    free_bytes = hardware.room_bytes(device)
    room = choosing.make_room(checkpoint, dtype.name, free_bytes, config.num_blocks)
    choice = await choosing.settle(config, presence.me, room, presence.look, presence.join)
    on_event(Event("placement", f"blocks {choice.span}: {choice.reason}"))
    engine = await asyncio.to_thread(_load, checkpoint, choice.span, dtype.name, device, free_bytes)
    served = presence.served(choice.span, checkpoint.hidden_size)
    on_event(
        Event("serving", f"blocks {choice.span} of {served.model.name}@{served.model.digest[:12]} ({engine.mode}, {dtype.name})")
    )
    kind = hardware.torch_dtype(dtype.name)
    token_bytes = kv_bytes_per_token(checkpoint.config, choice.span, kind)
    return Host(engine, served, manifest, kv_bytes_per_token=token_bytes, max_positions=checkpoint.max_positions)


def _load(checkpoint: Checkpoint, span: Span, dtype: str, device: str, free_bytes: int) -> Engine:
    kind = hardware.torch_dtype(dtype)
    module = load_span(checkpoint, span, dtype=kind, device=device)
    return choose_engine(module, int((free_bytes - span_bytes(checkpoint, span, kind)) * KV_SHARE))


def _invite(config: NodeConfig, peer: Peer, on_event: OnEvent) -> None:
    """The line that the next volunteer types, and the word that scripts wait for."""
    words = ["swarm", "node", config.model, "--peer", peer.multiaddrs[0]]
    if config.model_name is not None:
        words += ["--model-name", config.model_name]
    if config.swarm != DEFAULT_SWARM:
        words += ["--swarm", config.swarm]
    on_event(Event("invite", shlex.join(words)))
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
        listen=config.listen,
        announce=config.announce,
        data_dir=config.data_dir,
        identity_path=config.identity,
        name=config.name,
        on_join=tell,
    )


class Doors:
    """The node's handlers before there is a host behind them: the server must listen before a span can be chosen."""

    def __init__(self) -> None:
        self._rooms: Handlers = {}

    def open(self, host: Host) -> None:
        """From now on, calls reach the host."""
        self._rooms = host.handlers()

    def handlers(self) -> dict[str, Handler]:
        """By method name, for the peer's server."""
        return {
            services.SESSION.name: self._streaming(services.SESSION.name),
            services.ATTACH.name: self._streaming(services.ATTACH.name),
            services.MANIFEST.name: self._unary(services.MANIFEST.name),
        }

    def _streaming(self, name: str) -> Handler:
        async def handle(stream: Stream, call: Call) -> None:
            await self._behind(name)(stream, call)  # type: ignore[arg-type]

        return handle

    def _unary(self, name: str) -> Handler:
        async def handle(request: bytes, call: Call) -> bytes:
            return await self._behind(name)(request, call)  # type: ignore[arg-type, return-value]

        return handle

    def _behind(self, name: str) -> Handler:
        if name not in self._rooms:
            raise DrainingError("this node is still loading its blocks: try another one, or again in a moment")
        return self._rooms[name]


class Presence:
    """What the swarm sees of this node: its record, from `joining` to withdrawn, and its look at the others."""

    def __init__(self, config: NodeConfig, peer: Peer, model: ModelId, num_blocks: int) -> None:
        self.model, self.me, self.dtype = model, peer.peer_id, ""
        self.last_seen: choosing.Records = _Nobody()
        self._peer, self._num_blocks = peer, num_blocks
        self._span: Span | None = None
        self._host: Host | None = None
        self._record = PeerRecord(
            peer=peer.peer_id,
            name=config.name,
            software=software(),
            addresses=tuple(peer.addresses),
            certificate=peer.certificate,
            p2p_addresses=tuple(peer.multiaddrs),
        )

    async def look(self) -> list[choosing.Claim]:
        """What the others hold, or are about to."""
        self.last_seen = await self._peer.directory.snapshot(self.model.name)
        return choosing.claims(self.last_seen, self.model, self.me)

    async def look_closely(self) -> list[PeerRecord]:
        """Those who host what comes right after our span."""
        assert self._span is not None
        return neighbours.successors((await self._peer.directory.snapshot(self.model.name)).peers, self.model, self._span)

    async def join(self, span: Span) -> None:
        """Announce that we are about to host `span`."""
        is_first, self._span = self._span is None, span
        if is_first:
            await self._peer.directory.announce(self.record, (self.model.name,))
        else:
            await self._peer.directory.refresh()

    async def serve(self, host: Host) -> None:
        """Announce that we host it."""
        self._host = host
        await self._peer.directory.refresh()

    async def withdraw(self) -> None:
        """Take the announcement back, if there was one."""
        await self._peer.directory.withdraw()

    async def stop_serving(self) -> None:
        if self._host is not None:
            await self._host.stop()

    def served(self, span: Span, hidden_size: int) -> Served:
        """What sessions have to agree with."""
        return Served(
            peer=self.me, model=self.model, span=span, num_blocks=self._num_blocks, hidden_size=hidden_size, dtype=self.dtype
        )

    def record(self) -> PeerRecord:
        """This node now."""
        assert self._span is not None
        served = ServedSpan(model=self.model, span=self._span, num_blocks=self._num_blocks, dtype=self.dtype)
        trips = tuple(self._peer.round_trips_ms.items())[-MAX_ROUND_TRIPS:]
        record = replace(self._record, state="joining", spans=(served,), reachable=self._peer.reachable, round_trips=trips)
        if self._host is not None:
            load = self._host.load()
            record = replace(record, state="serving", free_tokens=load.free_tokens, queue=load.queue, step_ms=load.step_ms)
        return record.fitted()


class _Nobody:
    peers: Sequence[PeerRecord] = ()
