"""Which parts of which stored tensors a unit is made of. Pure.

Blocks and ends are whole tensors. An expert is whole tensors if the checkpoint stores each by itself
(`…experts.7.w1.weight`), and one index of axis 0 if it stores them fused (`…experts.gate_up_proj`, shape [experts, …]). A partition is
rows or columns of one matrix. What cannot be told from names, shapes and the config is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from protocols.errors import BadRequestError, ModelNotSupportedError
from protocols.units import AXES, Blocks, Ends, Expert, Partition, Unit
from swarm.checkpoints.numbered import block_of
from swarm.checkpoints.tensor_part import Cut, Stored, TensorPart

_BELOW_EXPERTS = re.compile(r"(?:^|\.)experts\.(?:([0-9]{1,5})\.)?")


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What has to be known of a checkpoint to tell its units apart."""

    tensors: Mapping[str, Stored]
    """By name."""
    prefix: str
    """What stands before the blocks' numbers (`numbered.block_prefix`)."""
    expert_counts: frozenset[int] = frozenset()
    """`numbered.expert_counts` of the config."""
    ends: tuple[str, ...] = ()
    """Names of the tensors of embedding, final norm and head; only the model's class tells them (`loading.stored_names`)."""

    @cached_property
    def _layers(self) -> dict[int, list[Stored]]:
        layers: dict[int, list[Stored]] = {}
        for name, tensor in self.tensors.items():
            layer = block_of(name, self.prefix)
            if layer is not None:
                layers.setdefault(layer, []).append(tensor)
        return layers

    def layer(self, number: int) -> list[Stored]:
        """The tensors of one block; BadRequestError if none is stored."""
        if number not in self._layers:
            raise BadRequestError(f"the model has no block {number}: blocks 0 to {max(self._layers, default=-1)} are stored")
        return self._layers[number]


def parts_of(unit: Unit, model: StoredModel) -> tuple[TensorPart, ...]:
    """The parts that `unit` consists of. BadRequestError: the model has no such block, expert or matrix. ModelNotSupportedError: an
    encoder's unit, or experts that are stored in a form that is not understood."""
    if unit.stack != "decoder":
        raise ModelNotSupportedError(f"unit {unit} is an encoder's: encoder-decoder models are not served yet")
    match unit:
        case Blocks(start=start, stop=stop):
            return tuple(TensorPart(tensor.name) for layer in range(start, stop) for tensor in model.layer(layer))
        case Ends():
            return tuple(TensorPart(name) for name in model.ends)
        case Expert():
            return _expert(unit, model)
        case Partition():
            return (_partition(unit, model),)


def _expert(unit: Expert, model: StoredModel) -> tuple[TensorPart, ...]:
    """Of every tensor below `experts` in its block: those with the expert's number, or the expert's index of axis 0."""
    parts, counts, numbers = [], set[int](), set[int]()
    for tensor, number in _below_experts(model.layer(unit.layer)):
        if number is None:
            counts.add(tensor.shape[0] if tensor.shape else 0)
            parts.append(TensorPart(tensor.name, Cut(0, unit.index, unit.index + 1)))
        else:
            numbers.add(number)
            parts += [TensorPart(tensor.name)] if number == unit.index else []
    counts |= {len(numbers), max(numbers) + 1} if numbers else set()  # two numbers if one is missing
    if len(counts) != 1 or not counts <= model.expert_counts:
        raise ModelNotSupportedError(
            f"the experts of block {unit.layer} cannot be told apart: its tensors below 'experts' speak of {sorted(counts)[:4]} experts, "
            f"the config of {sorted(model.expert_counts)[:8]}; take the whole block"
        )
    [count] = counts
    if unit.index >= count:
        raise BadRequestError(f"block {unit.layer} has experts 0 to {count - 1}, got {unit.index}")
    return tuple(parts)


def _below_experts(tensors: list[Stored]) -> Iterator[tuple[Stored, int | None]]:
    """(tensor, the expert's number behind `experts`; None if there is none)."""
    for tensor in tensors:
        if match := _BELOW_EXPERTS.search(tensor.name):
            yield tensor, None if match[1] is None else int(match[1])


def _partition(unit: Partition, model: StoredModel) -> TensorPart:
    wanted = f"{model.prefix}{unit.layer}.{unit.matrix}"
    found = next((tensor for tensor in model.layer(unit.layer) if tensor.name in (f"{wanted}.weight", wanted)), None)
    axis = AXES.index(unit.axis)
    if found is None or len(found.shape) != 2 or unit.stop > found.shape[axis]:
        what = "nothing" if found is None else f"shape {list(found.shape)}"
        raise BadRequestError(
            f"unit {unit} is {unit.axis} {unit.start}:{unit.stop} of a matrix; the model stores {what} as {wanted}"
        )
    return TensorPart(found.name, Cut(axis, unit.start, unit.stop))
