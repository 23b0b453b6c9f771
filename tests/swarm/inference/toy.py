"""A swarm on loopback whose blocks are arithmetic.

Servers, streams and sessions are real; there is no transformer.

A toy block adds to each token a tenth of the sum of all tokens of its sequence so far: an output depends on every earlier input, so a cold,
repeated or lost step changes the answer. The exact models are tested in tests/swarm/client and tests/end_to_end.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from node.gradients.frozen_stages import FrozenStages
from node.serving.dispatcher import Dispatcher
from node.serving.host import Host, HostEngines
from node.training.servicer import TrainingServicer
from protocols import compression, hello, services, weights
from protocols.errors import BadRequestError, CacheFullError
from protocols.identity import Identity
from protocols.ids import ModelId, Span
from protocols.inference import WANT_ALL, Op, StepSpec
from protocols.records import PeerRecord
from protocols.units import ENDS, Blocks
from protocols.weights_id import Weights
from swarm.clock import SYSTEM, Clock
from swarm.inference.client.session import Session, SessionConfig
from swarm.inference.hop.grants import Served
from swarm.inference.hop.hops import HopLimits
from swarm.routing.router import Router
from swarm.rpc import tls
from swarm.rpc.call import Call
from swarm.rpc.pool import ChannelPool
from swarm.rpc.server import RpcServer
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStreamLimits
from swarm.weights.shelf import Shelf
from swarm.weights.uploader import Uploader
from tests.hosting import hosted

WIDTH = 4
NUM_BLOCKS = 4
MANIFEST = weights.Manifest(entries=(), config=b"{}")
MODEL = ModelId("toy", MANIFEST.digest)


def new_identity() -> Identity:
    return Identity(Ed25519PrivateKey.generate())


@dataclass(slots=True)
class ToyRow:
    tokens: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)


class ToyEngine:
    """The face of `node.engines.engine.Engine`, with a limit on tokens for the tests of full memory."""

    mode = "toy"
    chunking = "always"
    hidden_size, dtype, device = WIDTH, torch.float64, torch.device("cpu")

    def __init__(self, span: Span, limit_tokens: int = 100_000) -> None:
        self.dtype = torch.float32
        self.span = span
        self.limit_bytes, self.used_bytes, self.forwards, self.num_computed = limit_tokens, 0, 0, 0
        self.batches: list[int] = []

    def warm_up(self) -> bool:
        return False

    def open(self) -> ToyRow:
        return ToyRow()

    def fork(self, row: ToyRow) -> ToyRow:
        self.used_bytes += row.length
        return ToyRow(list(row.tokens))

    def crop(self, row: ToyRow, tokens: int) -> None:
        if tokens > row.length:
            raise BadRequestError(f"cannot crop {tokens} of {row.length}")
        del row.tokens[row.length - tokens :]
        self.used_bytes -= tokens

    def close(self, row: ToyRow) -> None:
        self.used_bytes -= row.length
        row.tokens.clear()

    def growth_bytes(self, items: Sequence[tuple[ToyRow, int]]) -> int:
        return sum(count for _, count in items)

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        if self.used_bytes + self.growth_bytes(items) > self.limit_bytes:
            raise CacheFullError("no memory for more toys")
        self.forwards += 1
        self.num_computed += hidden.shape[1]
        self.batches.append(len(items))
        places = positions if positions is not None else torch.cat([torch.arange(r.length, r.length + n) for r, n in items])
        outputs = []
        for (row, count), piece, place in zip(
            items, hidden[0].split([n for _, n in items]), places.split([n for _, n in items]), strict=True
        ):
            for token, position in zip(piece, place, strict=True):
                row.tokens.append(token.clone())
                outputs.append(toy_output(row.tokens, int(position), len(self.span)))
            self.used_bytes += count
        return torch.stack(outputs)[None]


def toy_output(tokens: Sequence[Tensor], position: int, blocks: int) -> Tensor:
    return tokens[-1] * 0.5 + torch.stack(list(tokens)).mean(0) * 0.25 * blocks + 0.001 * position


@dataclass
class ToyNode:
    """One node: a real gRPC server, a real host, a toy engine."""

    span: Span
    engine: Any
    host: Host
    uploader: Uploader
    identity: Identity
    certificate: tls.TlsCertificate
    pool: ChannelPool
    swarm_name: str = "test"
    dispatcher: Dispatcher = field(default_factory=Dispatcher)
    server: RpcServer | None = None
    address: str = ""
    passes: TrainingServicer | None = None

    async def start(self) -> None:
        device = self.host.runner.device
        self.passes = TrainingServicer(device, frozen=FrozenStages(self.dispatcher.host_of, device, lambda: 1 << 30).stage_of)
        self.passes.connect(self.identity.peer_id, self.pool)
        handlers = {
            **self.dispatcher.handlers(),
            **self.uploader.handlers(),
            **self.passes.handlers(),
            services.HELLO.name: self._hello,
        }
        self.server = RpcServer(self.identity, self.certificate, handlers)
        self.address = f"127.0.0.1:{await self.server.start()}"
        await self.host.start(self.pool)
        self.dispatcher.open(self.host)

    async def _hello(self, request: bytes, call: Call) -> bytes:
        return hello.Hello(software="toy", swarm=self.swarm_name).encode()

    async def kill(self) -> None:
        """As if the process had died: the server ends without any message."""
        if self.server is not None:
            await self.server.stop(0)
            self.server = None
            await self.pool.close()
            await self.host.stop()

    def record(self) -> PeerRecord:
        what = self.host.served
        served = hosted(
            what.weights.model,
            self.span,
            what.num_blocks,
            dtype=what.dtype,
            ends=what.beside >= ENDS,
            free_tokens=self.host.load().free_tokens,
            step_ms=1.0,
        )
        return PeerRecord(
            peer=self.identity.peer_id, addresses=(self.address,), certificate=self.certificate.der, hosted=served,
        )  # fmt: skip


@dataclass(frozen=True)
class Records:
    peers: tuple[PeerRecord, ...]


class ToySwarm:
    """Nodes and one client; the directory is the list of nodes, dead ones included until `expire`."""

    def __init__(
        self, model: ModelId = MODEL, num_blocks: int = NUM_BLOCKS, manifest: weights.Manifest = MANIFEST, clock: Clock = SYSTEM
    ) -> None:
        self.model, self.num_blocks, self.manifest = model, num_blocks, manifest
        self.clock = clock
        """Of the nodes; the client's is the machine's."""
        self.wire_limits = MessageStreamLimits()
        """Of the client's message streams."""
        self.nodes: list[ToyNode] = []
        self.identity = new_identity()
        self.pool = ChannelPool(self.identity)
        self.router = Router(self, self._ping, Weights(model), num_blocks)

    async def snapshot(self, model_name: str) -> Records:
        return Records(tuple(node.record() for node in self.nodes if node.address))

    async def _ping(self, record: PeerRecord) -> float:
        channel, started_s = await self.pool.channel(record.peer, record.addresses, record.certificate), time.perf_counter()
        await channel.unary(services.HELLO, hello.Hello(software="toy", swarm="test").encode(), 2.0)
        return (time.perf_counter() - started_s) * 1e3

    async def serve(self, start: int, stop: int, *, limit_tokens: int = 100_000, limits: HopLimits | None = None) -> ToyNode:
        span = Span(start, stop)
        return await self.add(HostEngines(ToyEngine(span, limit_tokens), make_part=ToyEngine), span, limits)

    async def add(
        self, engines: HostEngines, span: Span, limits: HopLimits | None = None, max_positions: int | None = None
    ) -> ToyNode:
        """One more node, with an engine of any kind, and perhaps with embedding and head, or with engines of parts."""
        engine: Any = engines.engine
        identity, dtype = new_identity(), str(engine.dtype).removeprefix("torch.")
        served = Served(peer=identity.peer_id, weights=Weights(self.model), blocks=Blocks.of(span), num_blocks=self.num_blocks,
                        hidden_size=engine.hidden_size, dtype=dtype, beside=ENDS if engines.ends else frozenset())  # fmt: skip
        host = Host(engines, served, kv_bytes_per_token=1, max_positions=max_positions, limits=limits, clock=self.clock)
        uploader = Uploader()
        uploader.add(Shelf(self.model, self.manifest, lambda _tensor: None, Path()))
        node = ToyNode(span, engine, host, uploader, identity, tls.make(identity), ChannelPool(identity))
        await node.start()
        self.nodes.append(node)
        return node

    def session(
        self,
        *,
        route_timeout_s: float = 60.0,
        chunk_tokens: int = 128,
        stall_s: float = 5.0,
        silence_s: float = 60.0,
        **more: Any,
    ) -> Session:
        """more: hidden_size and vocab_size, for a thin one; blocks, for a part of the model."""
        config = SessionConfig(
            route_timeout_s=route_timeout_s, chunk_tokens=chunk_tokens, stall_s=stall_s, silence_s=silence_s, **more
        )
        return Session(self.router, Links(self.pool, limits=self.wire_limits), self.identity, config)

    async def stop(self) -> None:
        await self.pool.close()
        for node in self.nodes:
            await node.kill()


def hurry(session: Session, route_timeout_s: float) -> None:
    """From now on it waits for a route for so long: the ones before had time, on any machine."""
    object.__setattr__(session._config, "route_timeout_s", route_timeout_s)


async def ask(
    session: Session,
    ops: Sequence[Op],
    counts: Sequence[int],
    hidden: Tensor,
    want: int = WANT_ALL,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """`Session.step` for a caller with hidden states: tensor in, tensor out."""
    output = await session.step(ops, counts, compression.pack(hidden), StepSpec(want=want), positions)
    assert output.ids is None
    return compression.unpack(output.values)


def reference(tokens: Sequence[Tensor], spans: Sequence[tuple[int, int]], positions: Sequence[int] | None = None) -> list[Tensor]:
    """What the route answers to one sequence of tokens, computed here."""
    values = list(tokens)
    for start, stop in spans:
        values = [
            toy_output(values[: at + 1], at if positions is None else positions[at], stop - start) for at in range(len(values))
        ]
    return values


def random_tokens(count: int) -> Tensor:
    return torch.rand(count, WIDTH)


def fresh_seed() -> int:
    seed = secrets.randbelow(1 << 30)
    print("seed", seed)
    torch.manual_seed(seed)
    return seed


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until `condition` holds, by polling; TimeoutError otherwise."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
