"""What every optimizer of a unit does: one step, in place.

A step is a pure function of (parameters, state, mean gradient, version, learning rate, matrix updates): replicas that put in the
same bytes get out the same bytes, on every CPU and GPU. Each operation is one torch operation with one rounding
(research/training.md section 4).

What is made of matrix products (Muon's update) differs between machines in the last bits. So one replica computes it, and all apply the
same bytes: `assignments` says which member computes which, `compute_update` computes one, `apply` takes them all. AdamW has no such
updates; its callers take the same way with none. With one replica, `step` is the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from protocols.units import Unit

Parameters = Mapping[str, Tensor]
"""A unit's trainable tensors by name: float32, contiguous. A step writes into them."""

State = dict[str, Tensor]
"""The optimizer's memory of a unit, by `KIND/NAME` as in its snapshot (`exp_avg/3.mlp.up_proj.weight`): float32, of the parameter's shape
and device."""


class Optimizer(Protocol):
    """Gradients are means over the target tokens of a whole batch, float32, with the names and shapes of the parameters."""

    def new_state(self, parameters: Parameters, unit: Unit) -> State:
        """The state at version 0: zeros. A copy of the tensors, under the same names, is all that a checkpoint needs."""
        ...

    def step(self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float) -> None:
        """From `version` to `version` + 1, with every matrix update computed here: `apply` with all of `compute_update`."""
        ...

    def assignments(self, state: State, num_members: int) -> tuple[tuple[str, ...], ...]:
        """The matrices whose update each member of a group computes: `num_members` tuples of names, each matrix in one of them.

        It depends on names and shapes alone, so all replicas of a unit get the same answer. Costs are balanced.
        """
        ...

    def compute_update(self, name: str, state: State, mean: Tensor) -> Tensor:
        """The update of one matrix: float32, the parameter's shape, not yet scaled by the learning rate. Nothing is changed.

        name: one that `assignments` names; mean: the gradient of that parameter.
        """
        ...

    def apply(
        self, parameters: Parameters, state: State, mean: Parameters, version: int, lr: float, updates: Mapping[str, Tensor]
    ) -> None:
        """From `version` to `version` + 1, in place: parameters and state.

        updates: one for every matrix that `assignments` names; a tensor of another device is copied. BadRequestError, before anything is
        changed, if one is absent, superfluous, of another shape or dtype, not finite, or too large: updates come from peers.
        """
        ...
