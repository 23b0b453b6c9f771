"""A captured graph: a forward's torch calls without the model's Python.

Streaming a large weight matrix evicts instructions from the CPU caches, so the modules, hooks and helpers that a model's own `forward`
passes through cost as much as a tenth of a decode. A graph makes the same calls with the same arguments in the same order, so it computes
the same bits, for every input of the same shape. Segments that look alike (a block like the one before) share their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention between two segments, which the caller of `replay` computes. `slots` are those of query, key and value."""

    layer: int
    slots: tuple[int, int, int]
    options: Any
    output: int
    """Slot of the result."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The calls up to the next attention, or to the end. It reads the slots `inputs` and writes the slots `outputs`."""

    run: Callable[..., Sequence[Tensor]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attention: Attention | None


class CapturedGraph:
    """One forward. Slots hold the tensors that go from segment to segment: first the forward's inputs; every constant has its own."""

    def __init__(self, values: Sequence[Tensor | None], segments: Sequence[Segment], output: int) -> None:
        self._values, self._segments, self._output = values, segments, output

    def replay(self, inputs: Sequence[Tensor], attend: Callable[..., Tensor]) -> Tensor:
        """The forward's output. `attend(layer, query, key, value, options)` is called as often, and in the same order, as in the capture.

        inputs: tensors of the captured shapes, dtypes and devices; that is not checked.
        """
        values: list[Any] = list(self._values)
        values[: len(inputs)] = inputs
        for segment in self._segments:
            made = segment.run(*[values[slot] for slot in segment.inputs])
            for slot, tensor in zip(segment.outputs, made, strict=True):
                values[slot] = tensor
            if segment.attention is not None:
                query, key, value = segment.attention.slots
                attended = attend(segment.attention.layer, values[query], values[key], values[value], segment.attention.options)
                values[segment.attention.output] = attended
        output: Tensor = values[self._output]
        return output
