"""A replica whose gradients are integers.

So sums are exact in any order. Its state after any number of versions can be compared bit for bit with `alone`, a plain loop. There is
no model: a unit is a vector.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.cards import Ledger, UnitSum
from protocols.groups import Group
from protocols.ids import ModelId
from protocols.masks import mask_of
from protocols.parts_of_units import Part, parts_of
from protocols.units import Blocks, Ends, Unit
from swarm.averaging.replica import Reduced, Reopening

RUN = ModelId("toy", "ab" * 32)
SIZES: dict[Unit, int] = {Blocks(0, 1): 1_500, Blocks(1, 2): 3_001, Ends(): 700}
UNITS = tuple(SIZES)
PARTS = tuple(part for unit in UNITS for part in parts_of(unit))
LIMIT = 100.0
"""Norm of a mean gradient beyond which it is scaled."""


def gradient(version: int, index: int, part: Part) -> Tensor:
    """Of the part's unit, small integers as float32."""
    seed = int.from_bytes(hashlib.sha256(f"{version} {index} {part}".encode()).digest()[:6], "big")
    draw = torch.randint(-8, 9, (SIZES[part.unit],), generator=torch.Generator().manual_seed(seed))
    return draw.float()


def num_targets(index: int) -> int:
    return 100 + index


def step(parameters: Tensor, total: Tensor, count: int, squares: float) -> None:
    """One rounding per operation. squares: of the sum, not of the mean."""
    mean = total / torch.tensor(float(count))
    norm = squares**0.5 / count
    parameters -= mean * (0.1 * min(1.0, LIMIT / norm if norm else 1.0))


def alone(num_versions: int, num_indices: int) -> dict[Unit, Tensor]:
    """What a single process has after so many versions of `num_indices` micro-batches each."""
    parameters = {unit: torch.zeros(size) for unit, size in SIZES.items()}
    count = sum(map(num_targets, range(num_indices)))
    for version in range(num_versions):
        for unit in UNITS:
            total = torch.zeros(SIZES[unit])
            for part in parts_of(unit):
                for index in range(num_indices):
                    total += gradient(version, index, part)
            wide = total.double()
            step(parameters[unit], total, count, float(wide @ wide))
    return parameters


def bits(parameters: dict[Unit, Tensor]) -> str:
    """A name of all parameters' bits."""
    return hashlib.sha256(b"".join(bytes(parameters[unit].numpy()) for unit in UNITS)).hexdigest()


class ToyReplica:
    """All units of RUN. `swarm.averaging.replica.Replica`."""

    def __init__(self, step_s: float = 0.0) -> None:
        """step_s: how long a step takes."""
        self.version = 0
        self.chains: dict[Unit, bytes] = dict.fromkeys(UNITS, b"")
        self.parameters = {unit: torch.zeros(size) for unit, size in SIZES.items()}
        self.num_steps = 0
        self.reopened: list[Reopening] = []
        self.has_reopened = asyncio.Event()
        self.reduced: Reduced | None = None
        self._step_s = step_s
        self._is_closed = False
        self._empty()

    def _empty(self) -> None:
        self.gradients = {unit: torch.zeros(size) for unit, size in SIZES.items()}
        self.held: dict[Part, set[int]] = {part: set() for part in PARTS}

    def add(self, index: int, parts: Sequence[Part] = PARTS, version: int | None = None) -> bool:
        """False, and nothing is added, if the ledger is closed or of another version; an index that is held is not added again."""
        if self._is_closed or (version is not None and version != self.version):
            return False
        for part in parts:
            if index not in self.held[part]:
                self.gradients[part.unit] += gradient(self.version, index, part)
                self.held[part].add(index)
        return True

    def card(self, group: Group) -> Ledger:
        self._is_closed = True
        is_current = group.version == self.version
        held = {part: mask_of(self.held[part]) if is_current else 0 for part in PARTS}
        units = tuple(
            UnitSum(num_values=SIZES[unit], chain=self.chains[unit], held=tuple(held[part] for part in parts_of(unit)))
            for unit in group.units
        )
        ledger = Ledger(version=self.version, units=units)
        mine = {index for part in PARTS for index in self.held[part]}
        return Ledger(
            version=self.version, units=units, num_targets={i: num_targets(i) for i in mine if ledger.any_held >> i & 1}
        )

    async def sums(self, group: Group) -> Tensor:
        return torch.cat([self.gradients[unit] for unit in group.units])

    def num_extra(self, group: Group, member: int, num_members: int) -> int:
        return len(range(member, len(group.units), num_members))

    async def extra(self, group: Group, reduced: Reduced, member: int, num_members: int) -> Tensor:
        """Of every `num_members`-th unit the sum of its values: not what another member would have to trust."""
        return torch.tensor([reduced.norms[unit] for unit in group.units[member::num_members]], dtype=torch.float32)

    async def apply(self, group: Group, reduced: Reduced, extras: Sequence[Tensor]) -> None:
        await asyncio.sleep(self._step_s)
        assert group.version == self.version and self._is_closed
        gathered = {unit: float(extras[n % len(extras)][n // len(extras)]) for n, unit in enumerate(group.units)}
        values = dict(zip(group.units, reduced.values.split([SIZES[unit] for unit in group.units]), strict=True))
        for unit in group.units:
            assert gathered[unit] == float(torch.tensor(reduced.norms[unit], dtype=torch.float32))
            step(self.parameters[unit], values[unit], reduced.num_targets, reduced.norms[unit])
        self.chains |= reduced.chains
        self.version, self.num_steps, self.reduced = self.version + 1, self.num_steps + 1, reduced
        self._is_closed = False
        self._empty()

    def reopen(self, group: Group, how: Reopening) -> None:
        self.reopened.append(how)
        self.has_reopened.set()
        self._is_closed = False
        if how == "reset":
            self._empty()
