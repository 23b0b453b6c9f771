"""The parameters that a stage trains, by elementary unit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protocols.errors import ModelNotSupportedError, SpanNotServedError
from protocols.units import Blocks, Ends, Unit
from swarm.models.loading import EndsModel
from swarm.models.parts import SpanParts
from swarm.models.sharing import check_fit, copy_into


class Trainable:
    """Leaf tensors by unit and name, in the canonical order: units in theirs, names sorted."""

    def __init__(self, by_unit: Mapping[Blocks | Ends, Mapping[str, Tensor]]) -> None:
        """From now on these require gradients. ModelNotSupportedError if two units share a tensor."""
        self._tensors = dict(by_unit)
        self._names = {id(tensor): (unit, name) for unit, own in self._tensors.items() for name, tensor in own.items()}
        if len(self._names) < len(self.all()):
            raise ModelNotSupportedError("two units share a parameter: they cannot be trained apart")
        for tensor in self.all():
            tensor.requires_grad_(True)

    @property
    def units(self) -> tuple[Blocks | Ends, ...]:
        return tuple(self._tensors)

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """A unit's tensors by name; SpanNotServedError for one that is not here."""
        own = self._tensors.get(unit) if isinstance(unit, Blocks | Ends) else None
        if own is None:
            raise SpanNotServedError(f"{unit} is not trained here; there are {', '.join(map(str, self._tensors)) or 'none'}")
        return own

    def all(self) -> list[Tensor]:
        return [tensor for own in self._tensors.values() for tensor in own.values()]

    def name_of(self, tensor: Tensor) -> tuple[Blocks | Ends, str]:
        return self._names[id(tensor)]

    @property
    def stamp(self) -> int:
        """Another number after any of them was written to in place."""
        return sum(tensor._version for tensor in self.all())

    def write(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        """As `Stage.write`."""
        own = self.of(unit)
        check_fit(own, tensors)
        for name, tensor in tensors.items():
            copy_into(own[name], tensor)


def trained(parts: SpanParts, ends: EndsModel | None) -> dict[Blocks | Ends, dict[str, Tensor]]:
    """What transformers trains of them, by elementary unit: each block, then `Ends`."""
    span, tensors = parts.span, parts.tensors()
    found: dict[Blocks | Ends, dict[str, Tensor]] = {Blocks(number, number + 1): {} for number in range(span.start, span.stop)}
    for name in sorted(tensors.keys() & parts.trainable):
        number = int(name.partition(".")[0])
        found[Blocks(number, number + 1)][name] = tensors[name]
    if ends is not None:
        found[Ends()] = {name: tensor for name, tensor in sorted(ends.tensors().items()) if name in ends.trainable}
    return found
