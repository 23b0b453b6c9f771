"""The whole measurement: machine, network, and a swarm with one node more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from node import hardware
from node.benching import block_speed
from node.benching.block_speed import BlockSpeed
from node.benching.newcomer import Gain, Newcomer, gain
from node.config import NodeConfig
from node.events import OnEvent
from node.hosting.model_source import ModelSource, OnFetch
from node.placement import span_choice
from node.watching.look import Look, seen
from protocols.errors import SwarmError
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.units import Blocks
from protocols.weights_id import Weights
from swarm.asking import HELLO_S
from swarm.clock import SYSTEM
from swarm.models.checkpoint import Checkpoint
from swarm.peer.peer import Peer
from swarm.placement.choose import Capacity
from swarm.waiting import Wait, Waits
from swarm.weights.terms import Progress
from swarm.weights.uploader import Uploader


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """What was measured without asking the model."""

    model: ModelId
    num_blocks: int
    speed: BlockSpeed
    capacity: Capacity
    fetched_bytes: int
    fetched_s: float
    """Of block 0, from peers; 0 = it was here."""
    look: Look
    gain: Gain


async def bench(config: NodeConfig, peer: Peer, on_event: OnEvent, on_fetch: OnFetch, waits: Waits) -> Benched:
    """Measure. config: which model, where to compute, where its block is kept. peer: has met the swarm. The errors of a node's start."""
    fetched = [0, 0.0]

    def fetching(progress: Progress) -> None:
        fetched[0] = progress.total_bytes - progress.resumed_bytes
        on_fetch(progress)

    source = ModelSource(config, peer, Uploader(), on_event, fetching, waits)
    try:
        checkpoint, model, _manifest = await source.open()
        began_s = time.perf_counter()
        await source.fetch([Blocks.of(Span(0, 1))])
        fetched[1] = time.perf_counter() - began_s if fetched[0] else 0.0
        records = (await peer.directory.snapshot(model.name)).peers
        look = await _look(peer, model, records)
        with waits.on(Wait(kind="measuring", text="measuring a block on this machine")):
            dtype = _dtype(
                config, checkpoint, [record for record in records if record.peer not in look.silent], model, peer.peer_id
            )
            device = hardware.pick_device(config.device)
            speed = await asyncio.to_thread(block_speed.measure, checkpoint, dtype, device)
        capacity = span_choice.make_capacity(checkpoint, dtype, hardware.room_bytes(device), config.num_blocks)
        answering = _Records(tuple(record for record in records if record.peer not in look.silent))
        members = [claim.member for claim in span_choice.claims(answering, Weights(model), peer.peer_id)]
        newcomer = Newcomer(
            peer=peer.peer_id, weights=Weights(model), dtype=dtype, block_ms=speed.token_ms, capacity=capacity,
            hosts_ends=config.ends is not False, trips_ms=look.trips_ms,
        )  # fmt: skip
        return Benched(
            model=model, num_blocks=checkpoint.num_blocks, speed=speed, capacity=capacity, fetched_bytes=int(fetched[0]),
            fetched_s=fetched[1], look=look, gain=gain(members, newcomer, look),
        )  # fmt: skip
    finally:
        source.close()


@dataclass(frozen=True, slots=True)
class _Records:
    peers: tuple[PeerRecord, ...]


def _dtype(config: NodeConfig, checkpoint: Checkpoint, records: list[PeerRecord], model: ModelId, me: PeerId) -> str:
    served = span_choice.usual_dtype(span_choice.claims(_Records(tuple(records)), Weights(model), me))
    stored = span_choice.stored_dtype(checkpoint)
    return hardware.pick_dtype(config.dtype, stored, hardware.pick_device(config.device), served=served).name


async def _look(peer: Peer, model: ModelId, records: tuple[PeerRecord, ...]) -> Look:
    """Who answers, and how far away it is: the quicker of two hellos, since the first one connects."""

    async def trip_ms(record: PeerRecord) -> float | None:
        try:
            async with asyncio.timeout(2 * HELLO_S):
                return min([await peer.ping(record) for _ in range(2)])
        except (SwarmError, TimeoutError):
            return None

    trips = dict(zip([one.peer for one in records], await asyncio.gather(*map(trip_ms, records)), strict=True))
    silent = [one for one, ms in trips.items() if ms is None]
    return seen(SYSTEM.unix_s(), {model.name: records}, silent, {one: ms for one, ms in trips.items() if ms is not None})
