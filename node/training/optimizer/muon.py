"""Muon: orthogonal updates for the matrices of blocks, AdamW for all else.

The update of a matrix is scaled by 0.2 * sqrt(max(out, in)), so that the root mean square of its values is about 0.2, as that of an
update of AdamW: one learning rate and one weight decay serve both kinds. The other published scale, sqrt(max(1, out / in)), wants a
learning rate of its own (about 0.02), and gives another update for a matrix that is stored transposed, as GPT-2's. Its rate of 0.02
for a square matrix of width 256 is our learning rate of 0.02 / (0.2 * 16) = 0.00625.

Measured on a byte model of 82,000 parameters, 400 versions of 512 tokens, 3 seeds: validation loss 1.715 with Muon at 0.016, 2.086
with AdamW at its best rate, 0.002. So a small model wants a higher learning rate with Muon; the larger the matrices, the lower.

The momentum is element-wise, so every replica keeps the same bits; Newton-Schulz is matrix products, so one replica computes a
matrix's update and all apply the same bytes (`interface.py`).
Sources: Jordan 2024, https://kellerjordan.github.io/posts/muon/; the scale: Liu et al. 2025, https://arxiv.org/abs/2502.16982,
section 2.2 (`match_rms_adamw` of `torch.optim.Muon`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.training.optimizer.adamw import AdamW, zeros
from node.training.optimizer.elementwise import chunks, moving_average
from node.training.optimizer.interface import Parameters, State
from node.training.optimizer.kinds import is_matrix
from node.training.optimizer.newton_schulz import MAX_ENTRY, orthogonalize
from protocols.errors import BadRequestError
from protocols.units import Unit

MOMENTUM = "momentum/"
"""What the names of matrices' states begin with: a unit's state says which of its parameters are matrices (`kinds.is_matrix`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """An `Optimizer` that moves each matrix by the nearest orthogonal matrix to its mean gradient, with Nesterov momentum."""

    momentum: float = 0.95
    """Decay per version of the mean gradient, in [0, 1)."""

    others: AdamW = field(default_factory=AdamW)
    """For embeddings, head, norms, biases; its weight decay is also that of matrices."""

    def new_state(self, parameters: Parameters, unit: Unit) -> State:
        """`momentum/NAME` for each matrix; for the rest as AdamW."""
        matrices = {name: tensor for name, tensor in parameters.items() if is_matrix(name, tensor.shape, unit)}
        rest = {name: tensor for name, tensor in parameters.items() if name not in matrices}
        return {MOMENTUM + name: zeros(tensor) for name, tensor in matrices.items()} | self.others.new_state(rest, unit)

    def step(self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float) -> None:
        """As `Optimizer.step`."""
        updates = {name: self.compute_update(name, state, mean[name]) for name in _matrices(state)}
        self.apply(parameters, state, mean, version, lr, updates)

    def assignments(self, state: State, num_members: int) -> tuple[tuple[str, ...], ...]:
        """As `Optimizer.assignments`: the costliest matrix first, each to the member that has least to do so far."""
        costs = {name: newton_schulz_cost(state[MOMENTUM + name].shape) for name in _matrices(state)}
        loads, names = [0] * num_members, [[] for _ in range(num_members)]  # type: list[int], list[list[str]]
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            member = loads.index(min(loads))
            loads[member] += costs[name]
            names[member].append(name)
        return tuple(map(tuple, names))

    def compute_update(self, name: str, state: State, mean: Tensor) -> Tensor:
        """As `Optimizer.compute_update`: the orthogonal matrix."""
        with torch.no_grad():
            ahead = torch.empty_like(mean)
            for result, average, gradient in chunks(ahead, state[MOMENTUM + name], mean):
                result.copy_(average)
                moving_average(result, gradient, self.momentum)
                result.mul_(self.momentum).add_(gradient * (1 - self.momentum))  # Nesterov: one more step of the average
            return orthogonalize(ahead)

    def apply(
        self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float, updates: Mapping[str, Tensor]
    ) -> None:
        """As `Optimizer.apply`."""
        matrices = _matrices(state)
        check_updates({name: parameters[name] for name in matrices}, updates)
        with torch.no_grad():
            for name in matrices:
                self._move(parameters[name].detach(), state[MOMENTUM + name], mean[name], lr, updates[name])
        rest = {name: tensor for name, tensor in parameters.items() if name not in matrices}
        self.others.apply(rest, state, mean, version, lr, {})

    def _move(self, parameter: Tensor, average: Tensor, mean: Tensor, lr: float, update: Tensor) -> None:
        scale = lr * 0.2 * math.sqrt(max(parameter.shape[-2:]))
        for value, momentum, gradient, move in chunks(parameter, average, mean, update.to(parameter.device)):
            moving_average(momentum, gradient, self.momentum)
            value.mul_(1 - lr * self.others.weight_decay).sub_(move * scale)


def newton_schulz_cost(shape: Sequence[int]) -> int:
    """What the update of a matrix costs against others': multiplications of one matrix product, of all experts together."""
    return math.prod(shape) * min(shape[-2:])


def check_updates(matrices: Mapping[str, Tensor], updates: Mapping[str, Tensor]) -> None:
    """One update for each matrix, as `compute_update` makes them; BadRequestError for anything else."""
    if odd := sorted(matrices.keys() ^ updates.keys()):
        what = "lack" if odd[0] in matrices else "have a superfluous"
        raise BadRequestError(f"the matrix updates {what} {odd[0]!r}; expected {len(matrices)}, got {len(updates)}")
    for name, matrix in matrices.items():
        update = updates[name]
        if update.dtype != torch.float32 or update.shape != matrix.shape:
            raise BadRequestError(
                f"the update of {name!r} is {update.dtype} {list(update.shape)}, expected float32 {list(matrix.shape)}"
            )
        largest = float(torch.linalg.vector_norm(update, ord=math.inf))
        if not largest <= MAX_ENTRY:  # false for NaN
            raise BadRequestError(
                f"the update of {name!r} has an entry of size {largest}, an orthogonal matrix none above {MAX_ENTRY}"
            )


def _matrices(state: State) -> tuple[str, ...]:
    return tuple(sorted(key.removeprefix(MOMENTUM) for key in state if key.startswith(MOMENTUM)))
