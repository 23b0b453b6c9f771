"""A toy stage that trains: integer gradients at every version.

As `toy_stage.py`, and parameters are rounded to small integers wherever they are used: so after any number of optimizer steps each
gradient is an integer below 2^24, float32 sums are exact in any order, and a swarm's state must equal that of a single process bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from node.device.thread import Device
from node.training.accumulate import accumulate
from node.training.run_units import RunUnits
from protocols.ids import ModelId, Span
from protocols.runs import AveragingSpec, BatchRule, DataRule, OptimizerSpec, RunSpec, ScheduleSpec
from protocols.state import Form
from protocols.units import Blocks, Ends, Unit
from swarm.training.snapshot import PARAMETER, UnitSnapshot, form_of
from tests.node.training.toy_run import batch
from tests.node.training.toy_stage import ToyFlight, ToyStage, drawn

RUN = ModelId("exact", "cd" * 32)
NUM_BLOCKS, NUM_MICRO_BATCHES = 4, 12
LARGEST = 3
"""Of a parameter, as version 0 has it. Without a bound, gradients grow with every version: after 32, sums passed 2^24 and were rounded."""
ALL_UNITS: tuple[Unit, ...] = (*(Blocks(number, number + 1) for number in range(NUM_BLOCKS)), Ends())


def spec_of(steps: int, optimizer: str = "adamw") -> RunSpec:
    return RunSpec(
        name=RUN.name, data=DataRule(digest="0" * 64, sequence_tokens=5),
        batch=BatchRule(steps=steps, batch_tokens=10 * NUM_MICRO_BATCHES, micro_batch_sequences=2),
        optimizer=OptimizerSpec(name=optimizer, lr=0.4, weight_decay=0.01, clip=0.5), schedule=ScheduleSpec(shape="constant"),
        averaging=AveragingSpec(deadline_s=30.0), checkpoint_every=0, serve_every=0,
    )  # fmt: skip


class ExactStage(ToyStage):
    """`node.training.stage.Stage`, as far as a run needs it."""

    def forward(self, *arguments: Any, **options: Any) -> ToyFlight:
        own = self.held
        self.held = {unit: {k: _rounded(v) for k, v in tensors.items()} for unit, tensors in own.items()}
        try:
            return super().forward(*arguments, **options)
        finally:
            self.held = own

    def tensors(self, unit: Unit) -> dict[str, Tensor]:
        return self.held[unit]

    def write(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.held[unit][name].copy_(tensor)


def forms() -> dict[Unit, Form]:
    """Of the parameters of all units."""
    return {unit: form_of({f"{PARAMETER}/{name}": tensor for name, tensor in drawn(unit).items()}) for unit in ALL_UNITS}


def _rounded(values: Tensor) -> Tensor:
    """Integers between -LARGEST and LARGEST, whose gradient is that of the values."""
    return values.detach().round().clamp(-LARGEST, LARGEST) + (values - values.detach())


def drawn_index(version: int, index: int) -> int:
    """Which of `toy_run.batch` the micro-batch is."""
    return version * NUM_MICRO_BATCHES + index


def bits(snapshot: UnitSnapshot) -> str:
    """A name of a unit's version, parameters and moments. Not of its chain, which a single process has another one of."""
    return hashlib.sha256(f"{snapshot.unit} {snapshot.version} ".encode() + bytes(snapshot.content)).hexdigest()


def alone(num_versions: int, spec: RunSpec | None = None) -> dict[str, str]:
    """By unit: `bits` in a single process."""
    stage = ExactStage(Span(0, NUM_BLOCKS), NUM_BLOCKS)
    units = RunUnits(RUN, spec or spec_of(num_versions), stage, NUM_BLOCKS, Device())  # type: ignore[arg-type]
    for version in range(num_versions):
        num_targets = 0
        for index in range(NUM_MICRO_BATCHES):
            own = batch(drawn_index(version, index))
            gradients = stage.backward(stage.forward(stage.span, own.ids, own.positions, own.labels))
            accumulate(units.states, gradients, index, own.num_targets, version=version)
            num_targets += own.num_targets
        units.step_alone(num_targets)
    return {str(unit): bits(units.snapshot(unit)) for unit in units.states}
