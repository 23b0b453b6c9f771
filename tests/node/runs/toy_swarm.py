"""Stages and trainers of a toy run, in one process.

Gradients are small integers and do not depend on the parameters that are trained, so sums are exact at every version, and the state after
any number of steps can be compared bit for bit with `alone`, one process without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from node.device.thread import Device
from node.training.accumulate import accumulate
from node.training.flight import Gradients
from node.training.run_units import RunUnits
from node.training.servicer import TrainingServicer
from node.training.trained_stage import TrainedStage
from protocols import compression, services
from protocols.ids import PeerId, Span
from protocols.leases import Finished
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.runs import BatchRule, DataRule, RunSpec
from protocols.units import Blocks, Unit
from swarm.averaging.averager import Averager
from swarm.clock import SYSTEM
from swarm.rpc import ChannelPool, RpcServer, tls
from swarm.training.closing import Closing
from swarm.training.coordinator import Coordinator, Step
from swarm.training.election import Trainers
from swarm.training.lease_desk import LeaseDesk
from swarm.training.members import Members
from swarm.training.pipeline import Drawn, Pipeline
from swarm.training.turns import Turns
from swarm.training.worker import Worker
from tests.node.training.toy_run import NUM_BLOCKS, RUN, Batch, batch, new_identity
from tests.node.training.toy_stage import ToyFlight, ToyStage, drawn

SPEC = RunSpec(
    name="toy",
    seed=0,
    data=DataRule(digest="da" * 32, sequence_tokens=5),
    batch=BatchRule(steps=100, batch_tokens=120, micro_batch_sequences=2),
)
NUM = SPEC.num_micro_batches
HALVES = (Span(0, 3), Span(3, 6))


def own_batch(version: int, index: int) -> Batch:
    return batch(1_000 * version + index)


class TrainedToy(ToyStage):
    """Computes with version 0 for ever; what is trained is a copy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trained = {unit: {name: tensor.clone() for name, tensor in drawn(unit).items()} for unit in self.units}

        self.poison: Tensor | str | None = None
        """Labels of a micro-batch whose loss is NaN here, or "gradient": every gradient that is sent up is 1e30."""

    def parameters(self, unit: Unit) -> dict[str, Tensor]:
        return self.trained[unit]

    def tensors(self, unit: Unit) -> dict[str, Tensor]:
        return self.trained[unit]

    def write(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.trained[unit][name].copy_(tensor)

    def forward(self, span: Span, values: Tensor, positions: Any = None, labels: Any = None, **options: Any) -> ToyFlight:
        flight = super().forward(span, values, positions, labels, **options)
        if isinstance(self.poison, Tensor) and labels is not None and torch.equal(labels, self.poison):
            flight.loss_sum = float("nan")
        return flight

    def backward(self, *arguments: Any, **options: Any) -> Gradients:
        gradients = super().backward(*arguments, **options)
        if self.poison == "gradient" and gradients.input is not None:
            gradients = replace(gradients, input=torch.full_like(gradients.input, 1e30))
        return gradients


def alone(num_versions: int) -> dict[str, Tensor]:
    """What one process has after so many versions, by "unit name"."""
    stage = TrainedToy(Span(0, NUM_BLOCKS), NUM_BLOCKS)
    units = RunUnits(RUN, SPEC, stage, NUM_BLOCKS, Device())  # type: ignore[arg-type]
    for version in range(num_versions):
        num_targets = 0
        for index in range(NUM):
            own = own_batch(version, index)
            flight = stage.forward(stage.span, own.ids, own.positions, own.labels)
            gradients = stage.backward(flight)
            accumulate(units.states, gradients, index, own.num_targets, version=version)
            num_targets += own.num_targets
        units.step_alone(num_targets)
    return _named(stage)


def _named(stage: TrainedToy) -> dict[str, Tensor]:
    return {f"{unit} {name}": tensor.clone() for unit, own in stage.trained.items() for name, tensor in own.items()}


@dataclass
class Book:
    """A directory that all share."""

    records: dict[PeerId, PeerRecord] = field(default_factory=dict)
    is_torn: bool = False
    """Trainers are not found, while it is set."""

    @property
    def peers(self) -> tuple[PeerRecord, ...]:
        return tuple(one for one in self.records.values() if not self.is_torn or one.roles[0].kind != "trainer")

    @property
    def withdrawn(self) -> frozenset[PeerId]:
        return frozenset()

    async def snapshot(self, model: str) -> Book:
        return self


class Process:
    """A peer: server and connections."""

    def __init__(self, book: Book) -> None:
        self.book, self.identity = book, new_identity()
        self.peer = self.identity.peer_id
        self.pool, self.certificate = ChannelPool(self.identity), tls.make(self.identity)
        self.server: RpcServer | None = None

    async def listen(self, handlers: Mapping[str, Any], roles: Sequence[Role]) -> None:
        self.server = RpcServer(self.identity, self.certificate, dict(handlers))
        address = f"127.0.0.1:{await self.server.start()}"
        self.book.records[self.peer] = PeerRecord(
            peer=self.peer, addresses=(address,), certificate=self.certificate.der, roles=tuple(roles)
        )

    async def kill(self) -> None:
        """Nothing is said any more, and nothing heard."""
        assert self.server is not None
        await self.server.stop()
        await self.pool.close()


class StageProcess(Process):
    """One stage."""

    def __init__(self, book: Book, span: Span, at: Callable[[str], None] = lambda moment: None) -> None:
        super().__init__(book)
        self.stage, device = TrainedToy(span, NUM_BLOCKS, at=at), Device()
        self.units = RunUnits(RUN, SPEC, self.stage, NUM_BLOCKS, device)  # type: ignore[arg-type]
        self.trained = TrainedStage(run=RUN, stage=self.stage, states=self.units.states, spec=SPEC)
        self.servicer = TrainingServicer(device)
        self.servicer.open(self.trained)
        self.averager = Averager(self.identity, self.pool, lambda run: self.units)
        self.goes_on = asyncio.Event()
        """Clear it, and nothing is answered, as of a process that was stopped."""

    async def start(self) -> None:
        handlers = {**self.servicer.handlers(), **self.averager.handlers()}
        self.goes_on.set()
        await self.listen(
            {name: self._held(handler) for name, handler in handlers.items()}, [Role("stage", RUN, Blocks.of(self.stage.span))]
        )
        self.servicer.connect(self.peer, self.pool)

    def _held(self, handler: Any) -> Any:
        async def handle(request: Any, call: Any) -> Any:
            answer = await handler(request, call)
            await self.goes_on.wait()
            return answer

        return handle

    async def kill(self) -> None:
        await super().kill()
        await self.averager.stop()


class Source:
    def __init__(self, on_draw: Callable[[int, int], None]) -> None:
        self._on_draw = on_draw

    def draw(self, version: int, index: int) -> Drawn:
        self._on_draw(version, index)
        own = own_batch(version, index)
        return Drawn(
            ids=compression.pack(own.ids), labels=compression.pack(own.labels), positions=None, num_targets=own.num_targets
        )


class TrainerProcess(Process):
    """One trainer."""

    def __init__(self, book: Book, on_draw: Callable[[int, int], None] = lambda version, index: None) -> None:
        super().__init__(book)
        self.drawn: Counter[tuple[int, int]] = Counter()
        self.finished: list[Finished] = []
        self.steps: list[Step] = []
        self.waits: list[str] = []
        self.turns_taken: list[str] = []

        def draw(version: int, index: int) -> None:
            on_draw(version, index)
            self.drawn[version, index] += 1

        self.after = self._stepped
        members = Members(RUN, book, self.pool, num_blocks=NUM_BLOCKS)
        pipeline = Pipeline(
            members=members, spec=SPEC, source=Source(draw), clock=SYSTEM,
            rng=random.Random(self.peer), on_wait=self.waits.append,
        )  # fmt: skip
        desk = LeaseDesk(self.peer, SYSTEM, lambda: pipeline.window)
        self.closing = Closing(members, SPEC)
        self.members = members
        coordinator = Coordinator(
            members=members, desk=desk, closing=self.closing, spec=SPEC, clock=SYSTEM,
            on_wait=self.waits.append,
        )  # fmt: skip
        self.turns = Turns(
            me=self.peer, others=Trainers(RUN, self.peer, book, self.pool), worker=Worker(RUN, pipeline, self.finished.append),
            desk=desk, coordinator=coordinator, after=lambda step: self.after(step), clock=SYSTEM, on_turn=self.turns_taken.append,
        )  # fmt: skip
        self.task: asyncio.Task[None] | None = None

    async def start(self, until: int) -> None:
        await self.listen({services.LEASE.name: self.turns.on_lease}, [Role("trainer", RUN)])
        self.go_on(until)

    def go_on(self, until: int) -> TrainerProcess:
        """After it has ended: to another version."""
        self.task = asyncio.create_task(self.turns.train(until))
        return self

    async def kill(self) -> None:
        await super().kill()
        await self._end()

    async def leave(self) -> None:
        """As at Ctrl-C."""
        await self._end()
        await super().kill()

    async def _end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _stepped(self, step: Step) -> None:
        self.steps.append(step)

    @property
    def coordinates(self) -> bool:
        return self.turns._works_for == self.peer


@dataclass
class ToySwarm:
    """Everything that runs; all ends with it."""

    book: Book = field(default_factory=Book)
    stages: list[StageProcess] = field(default_factory=list)
    trainers: list[TrainerProcess] = field(default_factory=list)

    async def stage(self, span: Span, at: Callable[[str], None] = lambda moment: None) -> StageProcess:
        self.stages.append(StageProcess(self.book, span, at))
        await self.stages[-1].start()
        return self.stages[-1]

    async def trainer(self, until: int, on_draw: Callable[[int, int], None] = lambda version, index: None) -> TrainerProcess:
        self.trainers.append(TrainerProcess(self.book, on_draw))
        await self.trainers[-1].start(until)
        return self.trainers[-1]

    async def finished(self, *trainers: TrainerProcess, timeout_s: float = 180.0) -> None:
        """Until these have ended."""
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(trainer.task for trainer in trainers if trainer.task is not None))

    def check(self, num_versions: int, stages: Sequence[StageProcess] | None = None) -> None:
        """All these stages have the state of one process, bit for bit, and nothing of the next version."""
        expected = alone(num_versions)
        for stage in self.stages if stages is None else stages:
            assert {unit.version for unit in stage.units.states.values()} == {num_versions}
            for name, tensor in _named(stage.stage).items():
                assert torch.equal(tensor, expected[name]), name
            assert not any(state.num_targets() for state in stage.units.states.values())


@contextlib.asynccontextmanager
async def toy_swarm(*spans: Span) -> AsyncIterator[ToySwarm]:
    swarm = ToySwarm()
    try:
        for span in spans:
            await swarm.stage(span)
        yield swarm
    finally:
        for process in [*swarm.trainers, *swarm.stages]:
            await process.kill()


async def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not come true"
        await asyncio.sleep(0.005)
