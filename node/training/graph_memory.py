"""Measures what a forward's graph keeps alive; decides whether to keep it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from node.training.flight import Flight
from protocols.errors import ConfigError

Recompute = Literal["auto", "always", "never"]

MAX_KNOWN = 256
"""Shapes whose cost is remembered."""

Shape = tuple[int, ...]
"""What the cost of one sequence depends on: first block, last block, tokens."""


class GraphMemory:
    """Decides if a forward keeps its graph: `never` recompute, `always`, or `auto`: it is kept while all kept ones fit the budget.

    A backward without a graph runs the forward again: + 35 % of a micro-batch's time (docs/training.md). `auto` measures the first
    forward of each shape, which keeps its graph, however large: a backward would need as much.
    """

    def __init__(self, mode: Recompute, budget_bytes: int) -> None:
        if mode not in get_args(Recompute):
            raise ConfigError(f"recompute is one of {', '.join(get_args(Recompute))}, got {mode!r}")
        self._mode, self._budget_bytes = mode, budget_bytes
        self._flights: weakref.WeakSet[Flight] = weakref.WeakSet()
        self._known: dict[Shape, int] = {}

    @property
    def held_bytes(self) -> int:
        """Of the graphs of all flights that are neither closed nor gone."""
        return sum(flight.graph_bytes for flight in self._flights)

    def keeps(self, shape: Shape, num_sequences: int) -> bool:
        """May the next forward of this shape keep its graph?"""
        if self._mode != "auto":
            return self._mode == "never"
        held, cost = self.held_bytes, self._known.get(shape)
        return held == 0 if cost is None else held + cost * num_sequences <= self._budget_bytes

    def measured(
        self, shape: Shape, num_sequences: int, forward: Callable[[], Tensor], parameters: Iterable[Tensor]
    ) -> tuple[Tensor, int]:
        """The output of `forward`, whose graph is kept, and what it keeps alive besides parameters, in bytes."""
        if shape in self._known:
            return forward(), self._known[shape] * num_sequences
        seen = {tensor.untyped_storage().data_ptr() for tensor in parameters}
        total = 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal total
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
            return tensor.detach()  # an output of its own node would keep that node alive for ever

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = forward()
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[shape] = -(-total // num_sequences)
        return output, total

    def keep(self, flight: Flight) -> None:
        """Count the graph of this flight as long as it is open."""
        self._flights.add(flight)
