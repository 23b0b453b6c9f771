"""Nodes that train a toy model: real servers on loopback."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from node.device.thread import Device
from node.training.pass_limits import PassLimits
from node.training.servicer import TrainingServicer
from node.training.trained_stage import TrainedStage
from node.training.unit_state import UnitState
from protocols import compression
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, Span
from protocols.parts_of_units import Part
from protocols.route import Hop, Route
from protocols.runs import BatchRule, DataRule, RunSpec
from protocols.training import NO_TARGET, Pass
from protocols.units import Blocks
from swarm.rpc import ChannelPool, RpcServer, TlsCertificate, tls
from tests.node.training.toy_stage import ToyStage, V, drawn

RUN = ModelId("toy", "ab" * 32)
NUM_BLOCKS, NUM_MICRO_BATCHES = 6, 16
SHAPE = (2, 5)
"""Of a micro-batch: sequences and tokens."""

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
TRAINER = from_seed(b"trainer".ljust(32))


def spec_of(shape: tuple[int, int] = SHAPE) -> RunSpec:
    num, tokens = shape
    rule = BatchRule(steps=1, batch_tokens=NUM_MICRO_BATCHES * num * tokens, micro_batch_sequences=num)
    return RunSpec(name=RUN.name, data=DataRule(sequence_tokens=tokens), batch=rule)


def new_identity() -> Identity:
    return from_seed(random.SystemRandom().randbytes(32))


@dataclass
class TrainingNode:
    """One stage process, in this process."""

    span: Span
    limits: PassLimits | None = None
    at: Callable[[str], None] = lambda moment: None
    width: int = 4
    shape: tuple[int, int] = SHAPE
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identity, self.device = new_identity(), Device()
        self.stage = ToyStage(self.span, NUM_BLOCKS, width=self.width, at=lambda moment: self.at(moment))
        states = {unit: UnitState(unit, drawn(unit, self.width)) for unit in self.stage.units}
        self.trained = TrainedStage(run=RUN, stage=self.stage, states=states, spec=spec_of(self.shape))
        self.servicer = TrainingServicer(self.device, limits=self.limits, **self.options)
        self.servicer.open(self.trained)
        self.pool = ChannelPool(self.identity)
        self.certificate: TlsCertificate = tls.make(self.identity)
        self.server = RpcServer(self.identity, self.certificate, self.servicer.handlers())
        self.address = ""

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start()}"
        self.servicer.connect(self.identity.peer_id, self.pool)

    async def stop(self) -> None:
        await self.server.stop()
        await self.pool.close()

    def hop(self, span: Span | None = None, address: str = "") -> Hop:
        return Hop(self.identity.peer_id, (address or self.address,), self.certificate.der, Blocks.of(span or self.span))

    def sums(self) -> dict[str, Tensor]:
        """Gradient sums by "unit name"."""
        return {
            f"{unit} {name}": tensor.clone()
            for unit, state in self.trained.states.items()
            for name, tensor in state.views(state.flat).items()
        }

    def holds(self, part: Part, index: int) -> bool:
        return self.trained.holds(part, index)


@contextlib.asynccontextmanager
async def running(*nodes: TrainingNode) -> AsyncIterator[ChannelPool]:
    """Serve, and give a trainer's connections."""
    pool = ChannelPool(TRAINER)
    try:
        for node in nodes:
            await node.start()
        yield pool
    finally:
        await pool.close()
        for node in nodes:
            await node.stop()


@dataclass(frozen=True)
class Batch:
    """One micro-batch of integers, drawn from its index."""

    ids: Tensor
    labels: Tensor
    positions: Tensor | None

    @property
    def num_targets(self) -> int:
        return int((self.labels != NO_TARGET).sum())


def batch(index: int, shape: tuple[int, int] = SHAPE, *, is_packed: bool = False) -> Batch:
    rng = torch.Generator().manual_seed(index)
    ids, labels = (torch.randint(0, V, shape, generator=rng, dtype=torch.int32) for _ in range(2))
    labels[:, -1] = NO_TARGET
    positions = (torch.arange(shape[1], dtype=torch.int32) % 3).repeat(shape[0], 1) if is_packed else None
    return Batch(ids, labels, positions)


def pass_of(route: Route, index: int | None, own: Batch | None = None, /, **changes: Any) -> Pass:
    own = own or batch(index or 0)
    fields: dict[str, Any] = {
        "run": RUN, "version": 0, "index": index, "route": route, "payload": compression.pack(own.ids),
        "labels": compression.pack(own.labels), "num_targets": own.num_targets, "budget_ms": 20_000,
        "positions": None if own.positions is None else compression.pack(own.positions),
    }  # fmt: skip
    return Pass(**{**fields, **changes})
