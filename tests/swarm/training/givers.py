"""Peers that give state over real sockets; some lie or stall."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import torch

from protocols import services, state
from protocols.errors import SpanNotServedError
from protocols.identity import from_seed
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.state import StateHeader, StatePart, StateRequest
from protocols.units import Blocks, Ends, Unit
from swarm.rpc import ChannelPool, Handlers, RpcServer, Stream, tls
from swarm.training.kept_state import KeptState
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_download import Wanted, download, same_form
from swarm.training.state_server import StateServer

RUN = ModelId("prose", "ab" * 32)
CHAIN = bytes(range(32))
UNITS: tuple[Unit, ...] = (Blocks(0, 1), Blocks(1, 2), Ends())

Edit = Callable[[StateHeader | StatePart], Sequence[StateHeader | StatePart]]
"""What a lying giver sends in place of an honest answer."""


def snapshot_of(unit: Unit, version: int = 7, values: int = 300_000, seed: int = 0) -> UnitSnapshot:
    draw = torch.Generator().manual_seed(seed)
    named = {f"{kind}/weight": torch.randn(values, generator=draw) for kind in ("parameter", "momentum")}
    tensors = {**named, "parameter/bias": torch.randn(5, generator=draw)}
    return UnitSnapshot.of(unit=unit, version=version, chain=CHAIN if version else b"", tensors=tensors)


class Stage:
    """Holds snapshots as a stage holds its units, and counts what was asked of it."""

    def __init__(self, *snapshots: UnitSnapshot) -> None:
        self.now = {snapshot.unit: snapshot for snapshot in snapshots}
        self.kept = KeptState(self.live)
        self.num_taken = 0

    async def live(self, unit: Unit) -> UnitSnapshot:
        if unit not in self.now:
            raise SpanNotServedError(f"{unit} is not trained here")
        self.num_taken += 1
        return self.now[unit]


class LyingServer(StateServer):
    """Sends what `edit` makes of each honest answer; after the last of them it is silent, or breaks off."""

    def __init__(self, edit: Edit, *, is_silent: bool = False) -> None:
        super().__init__()
        self.edit, self.is_silent = edit, is_silent
        self.has_sent, self.release = asyncio.Event(), asyncio.Event()

    async def _send(self, stream: Stream, slot: Any, frame: bytes) -> None:
        for answer in self.edit(state.parse_answer(frame)):
            await stream.send(answer.encode())
            self.has_sent.set()
        if self.is_silent and self.has_sent.is_set():
            await self.release.wait()


@dataclass
class Givers:
    """Running servers, and a peer that downloads."""

    pool: ChannelPool
    servers: list[RpcServer] = field(default_factory=list)
    others: list[ChannelPool] = field(default_factory=list)

    async def start(self, stage: Stage, server: StateServer | None = None) -> PeerRecord:
        identity = from_seed(bytes([len(self.servers) + 1]) * 32)
        server, certificate = server or StateServer(), tls.make(identity)
        server.add(RUN, stage.kept.take)
        handlers: Handlers = server.handlers()
        rpc = RpcServer(identity, certificate, handlers)
        port = await rpc.start()
        self.servers.append(rpc)
        return PeerRecord(peer=identity.peer_id, addresses=(f"127.0.0.1:{port}",), certificate=certificate.der)

    def caller(self) -> ChannelPool:
        """The connections of another peer."""
        self.others.append(ChannelPool(from_seed(bytes([100 + len(self.others)]) * 32)))
        return self.others[-1]

    async def ask(self, record: PeerRecord, *units: Unit, version: int | None = None, by: ChannelPool | None = None) -> Stream:
        """A stream on which this state was asked for."""
        channel = await (by or self.pool).channel(record.peer, record.addresses, record.certificate)
        stream = await channel.stream(services.STATE)
        await stream.send(StateRequest(run=RUN, units=units, version=version).encode())
        return stream

    async def get(self, *wanted: Wanted, stall_s: float = 5.0) -> dict[Unit, UnitSnapshot]:
        async with aclosing(download(self.pool, RUN, wanted, stall_s=stall_s)) as found:
            return {snapshot.unit: snapshot async for snapshot in found}


@contextlib.asynccontextmanager
async def givers() -> AsyncIterator[Givers]:
    made = Givers(ChannelPool(from_seed(bytes([99]) * 32)))
    try:
        yield made
    finally:
        for pool in (made.pool, *made.others):
            await pool.close()
        for server in made.servers:
            await server.stop()


def wanted(snapshot: UnitSnapshot, *sources: PeerRecord, version: int | None = 7, chain: bytes | None = CHAIN) -> Wanted:
    return Wanted(unit=snapshot.unit, version=version, chain=chain, check=same_form(snapshot.form), sources=sources)


async def rest_of(stream: Stream) -> int:
    """Bytes of all frames until the end."""
    total = 0
    while (data := await stream.receive()) is not None:
        total += len(data)
    return total
