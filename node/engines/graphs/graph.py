"""A graph: a forward's torch calls without the Python that made them, to be replayed for every input of the same shape.

Between two matrices that do not fit its caches a core has forgotten all code, so the modules, hooks and helpers that a model's own
`forward` passes through cost as much as a tenth of a decode. A graph holds the same calls with the same arguments in the same
order, so it computes the same bits; parts that look alike (a block like the one before) share their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Attention:
    """What stands between two parts: whoever plays attends. Slots of query, key and value, and of what comes out."""

    layer: int
    slots: tuple[int, int, int]
    options: Any
    output: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Calls up to an attention, or to the end: values of `inputs` in, values of `outputs` out."""

    run: Callable[..., Sequence[Tensor]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attention: Attention | None


class CapturedGraph:
    """One forward. Slots hold what parts hand to each other: first the inputs, and all constants at their own."""

    def __init__(self, values: Sequence[Tensor | None], segments: Sequence[Segment], output: int) -> None:
        self._values, self._segments, self._output = values, segments, output

    def replay(self, inputs: Sequence[Tensor], attend: Callable[..., Tensor]) -> Tensor:
        """The forward's output. `attend(layer, query, key, value, options)` as it was called when this was recorded."""
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
