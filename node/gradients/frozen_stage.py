"""One host's blocks as clients' passes see them: differentiable, and frozen.

It computes with the very tensors that are served, and gives gradients of inputs only. It is made at the first pass; the host's end closes
it, and passes that are in hand then go on at a replica. All methods but the constructor belong to the device's thread.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from node.training.flight import Flight, Gradients
from node.training.pass_inputs import check_length
from node.training.stage import Stage
from node.units.host_units import HostReadings
from protocols.errors import DrainingError, ModelNotSupportedError, PassTooLargeError
from protocols.ids import Span
from protocols.parts_of_units import Part

PROBES = (16, 64)
"""Tokens of the two forwards that measure what a graph takes."""


@dataclass(frozen=True, slots=True)
class GraphCost:
    """What the graph of one sequence through all blocks keeps alive, in bytes: `by_token` * T + `by_pair` * T * T."""

    by_token: float
    by_pair: float

    @classmethod
    def of(cls, tokens: tuple[int, int], measured: tuple[int, int]) -> GraphCost:
        """From what sequences of two lengths took. Attention that keeps its weights takes a part for each pair of tokens."""
        (short, long), (less, more) = tokens, measured
        by_pair = max(0.0, (more - less * long / short) / (long * long - long * short))
        return cls(max(0.0, (less - by_pair * short * short) / short), by_pair)

    def bytes(self, rows: int, tokens: int) -> int:
        """Of so many sequences of equal length."""
        return int(rows * (self.by_token * tokens + self.by_pair * tokens * tokens))


class FrozenStage:
    """Forward and backward of clients' passes (`node/training/trained_stage.py: ComputesPasses`)."""

    def __init__(self, readings: HostReadings, num_blocks: int, *, limit_bytes: int, max_positions: int | None = None) -> None:
        """readings: the host's; `close` comes before theirs. num_blocks: of the whole model. limit_bytes: what the graph of one pass may
        take, and what all graphs that wait for their backward may take together; a pass beyond that is computed again at its backward.
        max_positions: the longest sequence."""
        self._readings, self._num_blocks = readings, num_blocks
        self._limit_bytes, self._max_positions = limit_bytes, max_positions
        self._stage: Stage | None = None
        self._cost = GraphCost(0.0, 0.0)
        self._is_closed = False

    @property
    def held_bytes(self) -> int:
        """What graphs between forward and backward keep alive."""
        return 0 if self._stage is None else self._stage.held_bytes

    def forward(
        self,
        span: Span,
        values: Tensor,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        is_embeds: bool = False,
        for_backward: bool = True,
    ) -> Flight:
        """As `Stage.forward`. BadRequestError: a longer sequence than the model takes. PassTooLargeError: too large a pass for the memory
        here. DrainingError: these weights are not served here any more."""
        stage = self._opened()
        rows, tokens = values.shape[:2]
        check_length(tokens, self._max_positions)
        needed = self._cost.bytes(rows, tokens) * len(span) // len(stage.span)
        if needed > self._limit_bytes:
            raise PassTooLargeError(
                f"a pass of {rows} x {tokens} tokens needs {needed >> 20} MiB, at most {self._limit_bytes >> 20} MiB here: "
                "send fewer or shorter sequences at once, or ask a replica"
            )
        return stage.forward(span, values, positions, labels, is_embeds=is_embeds, for_backward=for_backward)

    def backward(self, flight: Flight, gradient: Tensor | None = None, *, parts: Collection[Part] | None = None) -> Gradients:
        """As `Stage.backward`; DrainingError as of `forward`."""
        return self._opened().backward(flight, gradient, parts=parts)

    def close(self) -> None:
        """The host stops: its tensors may be written to from now on. Passes in hand fail at their next step."""
        self._is_closed, self._stage = True, None

    def _opened(self) -> Stage:
        if self._is_closed:
            raise DrainingError(f"{self._readings.weights} is not served here any more: try a replica")
        if self._stage is None:
            stage = self._make()
            self._cost = self._measure(stage)
            self._stage = stage
        return self._stage

    def _make(self) -> Stage:
        blocks, ends = self._readings.blocks.holding, self._readings.ends
        try:
            own = None if ends is None else ends.holding
            return Stage(blocks, own, self._num_blocks, use="frozen", graph_bytes=self._limit_bytes)
        except ModelNotSupportedError:
            if ends is None:
                raise
            return Stage(blocks, None, self._num_blocks, use="frozen", graph_bytes=self._limit_bytes)

    def _width(self) -> int:
        blocks = self._readings.blocks.holding
        return int(blocks.cut(blocks.span).hidden_size)

    def _measure(self, stage: Stage) -> GraphCost:
        most = self._max_positions or PROBES[1]
        tokens = (min(PROBES[0], most // 2), min(PROBES[1], most))
        measured = []
        for length in tokens:
            noise = torch.randn(1, length, self._width(), generator=torch.Generator().manual_seed(0))
            flight = stage.forward(stage.span, noise)
            measured.append(flight.graph_bytes)
            flight.close()
        return GraphCost.of(tokens, (measured[0], measured[1]))
