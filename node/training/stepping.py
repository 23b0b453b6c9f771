"""The step of a unit, from a version's reduced gradient.

The gradient is divided by the target tokens of the batch and clipped by unit, with one factor that all replicas compute from the same
numbers; then the optimizer steps. Everything here is a function of the reduced bytes, so replicas stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from node.training.optimizer.choice import make_optimizer
from node.training.optimizer.clip import mean_scale
from node.training.optimizer.interface import Parameters, State
from node.training.optimizer.schedule import learning_rate
from protocols.runs import RunSpec
from protocols.units import Unit

PIECE = 1 << 20
"""Values that are widened at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGradient:
    """The reduced gradient of one unit."""

    sums: Mapping[str, Tensor]
    """Sums over all target tokens of the batch, float32, by the parameters' names."""
    sum_of_squares: float
    """Of all its values, as the reducers computed it."""


class Stepper:
    """Steps the units of one run. It holds settings only."""

    def __init__(self, spec: RunSpec, num_units: int) -> None:
        """num_units: of the whole model: its blocks, and embedding and head as one."""
        self._spec, self._num_units = spec, num_units
        self._optimizer = make_optimizer(spec.optimizer)

    def learning_rate(self, version: int) -> float:
        """Of the step from `version` to `version` + 1."""
        return learning_rate(self._spec.schedule, self._spec.optimizer.lr, version, self._spec.batch.steps)

    def new_state(self, parameters: Parameters, unit: Unit) -> State:
        """The optimizer's state at version 0."""
        return self._optimizer.new_state(parameters, unit)

    def step(
        self,
        parameters: Parameters,
        state: State,
        gradient: UnitGradient,
        version: int,
        num_targets: int,
        updates: Mapping[str, Tensor] | None = None,
    ) -> None:
        """From `version` to `version` + 1, in place. num_targets: target tokens of the whole batch.

        updates: of the matrices, as `compute_updates` of all members of the group; None = they are computed here.
        """
        mean, lr = self._mean(gradient, num_targets), self.learning_rate(version)
        if updates is None:
            self._optimizer.step(parameters, state, mean, version, lr)
        else:
            self._optimizer.apply(parameters, state, mean, version, lr, updates)

    def names_of(self, state: State, member: int, num_members: int) -> tuple[str, ...]:
        """The matrices of a unit whose updates member number `member` computes."""
        return self._optimizer.assignments(state, num_members)[member]

    def compute_updates(self, names: Sequence[str], state: State, gradient: UnitGradient, num_targets: int) -> Iterator[Tensor]:
        """The updates of these matrices, in their order. Nothing is changed."""
        scale = self._scale(gradient, num_targets)
        for name in names:
            yield self._optimizer.compute_update(name, state, gradient.sums[name] * scale)

    def _scale(self, gradient: UnitGradient, num_targets: int) -> float:
        return mean_scale(gradient.sum_of_squares, num_targets, self._spec.optimizer.clip, self._num_units)

    def _mean(self, gradient: UnitGradient, num_targets: int) -> dict[str, Tensor]:
        scale = self._scale(gradient, num_targets)
        return {name: tensor * scale for name, tensor in gradient.sums.items()}


def sum_of_squares(values: Tensor) -> float:
    """Of a flat float32 tensor, in float64, piece by piece: without a float64 copy of it all. Exact for integers of moderate size."""
    return sum(float(torch.dot(wide, wide)) for wide in map(Tensor.double, values.split(PIECE)))
