"""AdamW in separate operations: the same bits on every machine.

Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, as `torch.optim.AdamW` without amsgrad. It equals torch's
within rounding; why torch's own is not used: `elementwise.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from node.training.optimizer.elementwise import chunks, moving_average, power
from node.training.optimizer.interface import Parameters, State
from node.training.optimizer.kinds import gets_weight_decay
from protocols.errors import BadRequestError
from protocols.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """An `Optimizer` that moves each value by its mean gradient over the root of its mean squared gradient."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per version of the mean gradient, and of the mean squared gradient; in [0, 1)."""

    eps: float = 1e-8
    """Added to the root, so that a value without gradient does not divide by zero."""

    weight_decay: float = 0.1
    """A weight shrinks by this share times the learning rate per version (`kinds.gets_weight_decay`)."""

    def new_state(self, parameters: Parameters, unit: Unit) -> State:
        """Two tensors for each parameter, `exp_avg/NAME` and `exp_avg_sq/NAME` (names of torch's own state)."""
        kinds = ("exp_avg", "exp_avg_sq")
        return {f"{kind}/{name}": zeros(tensor) for name, tensor in parameters.items() for kind in kinds}

    def step(self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float) -> None:
        """As `Optimizer.step`."""
        self.apply(parameters, state, mean, version, lr, {})

    def assignments(self, state: State, num_members: int) -> tuple[tuple[str, ...], ...]:
        """No member has anything to compute for the others."""
        return ((),) * num_members

    def compute_update(self, name: str, state: State, mean: Tensor) -> Tensor:
        """Never called: `assignments` names nothing."""
        raise AssertionError(f"AdamW computes no update apart, asked for {name}")

    def apply(
        self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float, updates: Mapping[str, Tensor]
    ) -> None:
        """As `Optimizer.apply`; `updates` is empty."""
        if updates:
            raise BadRequestError(f"AdamW has no matrix updates, got one for {next(iter(updates))!r}; is this another run's?")
        with torch.no_grad():
            for name, parameter in parameters.items():
                decay = self.weight_decay if gets_weight_decay(name, parameter.shape) else 0.0
                self.update(parameter, (state[f"exp_avg/{name}"], state[f"exp_avg_sq/{name}"]), mean[name], version, lr, decay)

    def update(
        self, parameter: Tensor, moments: tuple[Tensor, Tensor], mean: Tensor, version: int, lr: float, decay: float
    ) -> None:
        """One parameter and its moments, in place. decay: the weight decay of this parameter."""
        first, second = self.betas
        unbias_first, unbias_second = (1 / (1 - power(beta, version + 1)) for beta in self.betas)
        for value, average, average_square, gradient in chunks(parameter.detach(), *moments, mean):
            moving_average(average, gradient, first)
            moving_average(average_square, gradient * gradient, second)
            root = (average_square * unbias_second).sqrt_().add_(self.eps)
            step = (average * unbias_first).div_(root).mul_(lr)
            value.mul_(1 - lr * decay).sub_(step)


def zeros(tensor: Tensor) -> Tensor:
    """float32 zeros of a parameter's shape on its device; the parameter is contiguous float32 (assertion)."""
    assert tensor.dtype == torch.float32 and tensor.is_contiguous(), f"parameters are contiguous float32, got {tensor.dtype}"
    return torch.zeros_like(tensor, requires_grad=False)
