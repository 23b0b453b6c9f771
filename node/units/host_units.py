"""The units of one host, which change their weights together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from node.units.loaded import LoadedUnit, Reading
from protocols.errors import BadRequestError, InternalError
from protocols.units import Unit
from protocols.weights_id import Weights
from swarm.models.loading import EndsModel
from swarm.models.parts import SpanParts

Changes = Mapping[Unit, Mapping[str, Tensor]]
"""By unit: other numbers for tensors, by the names that `LoadedUnit` knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReadings:
    """What one host reads, until its end."""

    blocks: Reading[SpanParts]
    ends: Reading[EndsModel] | None = None

    @property
    def weights(self) -> Weights:
        return self.blocks.weights

    def close(self) -> None:
        """As `Reading.close`, of all."""
        self.blocks.close()
        if self.ends is not None:
            self.ends.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUnits:
    """Blocks, and embedding and head if they are hosted beside them."""

    blocks: LoadedUnit[SpanParts]
    ends: LoadedUnit[EndsModel] | None = None

    def read(self) -> HostReadings:
        """Hold the newest version of all; errors as of `LoadedUnit.read`."""
        with ExitStack() as undone:
            blocks = undone.enter_context(self.blocks.read())
            ends = None if self.ends is None else undone.enter_context(self.ends.read())
            if ends is not None and ends.weights != blocks.weights:
                raise InternalError(f"the blocks are of {blocks.weights}, embedding and head of {ends.weights}: load them anew")
            undone.pop_all()
        return HostReadings(blocks=blocks, ends=ends)

    def added_bytes(self, changes: Changes) -> int:
        """Memory that `replace` would newly take now."""
        return sum(unit.added_bytes(sum(t.nbytes for t in changes.get(unit.unit, {}).values())) for unit in self._all())

    def check(self, changes: Changes, weights: Weights) -> None:
        """Raise the BadRequestError that `replace` would raise."""
        owned = {unit.unit for unit in self._all()}
        if strange := [unit for unit in changes if unit not in owned]:
            raise BadRequestError(f"{strange[0]} is not hosted here; there are {', '.join(map(str, sorted(owned)))}")
        for unit in self._all():
            unit.check(changes.get(unit.unit, {}), weights)

    def replace(self, changes: Changes, weights: Weights) -> None:
        """From now on `read` gives `weights`, in every unit; BadRequestError as of `LoadedUnit.replace`: nothing is changed then.

        Any other error, such as memory that ends, leaves units with different weights: `read` raises InternalError then.
        """
        self.check(changes, weights)
        for unit in self._all():
            unit.replace(changes.get(unit.unit, {}), weights)

    def restore(self, readings: HostReadings) -> None:
        """From now on `read` gives what these hold, as `LoadedUnit.restore` does."""
        self.blocks.restore(readings.blocks)
        if self.ends is not None and readings.ends is not None:
            self.ends.restore(readings.ends)

    def _all(self) -> list[LoadedUnit[Any]]:
        return [self.blocks, *([] if self.ends is None else [self.ends])]
