"""A unit's snapshot: its parameters and optimizer state at one version.

It is what downloads, checkpoints, buddies and published versions exchange. All of it is one run of bytes (`protocols/state.py`), so
sending and hashing need no second copy, and the tensors are views of it.

Names: `parameter/NAME` for everything that a checkpoint stores of the unit, frozen tensors and persistent buffers included; NAME as
`SpanParts.tensors()` has it for blocks (`3.mlp.down_proj.weight`), and `EndsModel.tensors()` for `Ends`. Any other first word is a
kind of optimizer state: `momentum/NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError
from protocols.state import Form, StateHeader, TensorForm, state_hash
from protocols.units import Unit
from swarm.models.dtypes import DTYPES, SPELLED

PARAMETER = "parameter"
"""The first word of the names of what a checkpoint stores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitSnapshot:
    """One unit at one version; nothing of it changes any more. `UnitSnapshot.of` makes it from tensors."""

    unit: Unit
    version: int
    """Optimizer steps that were applied."""
    chain: bytes
    """Of version 0 nothing; else 32 bytes."""
    form: Form
    data: Tensor
    """uint8 [form.num_bytes] on the CPU: the bytes of all tensors in the order of the form."""

    @classmethod
    def of(cls, *, unit: Unit, version: int, chain: bytes, tensors: Mapping[str, Tensor]) -> UnitSnapshot:
        """Copy these tensors (by name, any device). For a stage: on the device's thread, while no step is applied.

        BadRequestError if a name is no `kind/name`, or a dtype does not travel.
        """
        form = form_of(tensors)
        snapshot = cls(unit=unit, version=version, chain=chain, form=form, data=torch.empty(form.num_bytes, dtype=torch.uint8))
        with torch.no_grad():
            for name, place in snapshot.tensors.items():
                place.copy_(tensors[name])
        return snapshot

    @classmethod
    def received(cls, header: StateHeader, data: Tensor) -> UnitSnapshot:
        """What a header and bytes make together; that they have the header's digest was checked."""
        snapshot = cls(unit=header.unit, version=header.version, chain=header.chain, form=header.form, data=data)
        snapshot.__dict__["digest"] = header.digest  # where the cached property would put it
        return snapshot

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By name: views of `data`, to be read only."""
        found, at = {}, 0
        for tensor in self.form.tensors:
            part = self.data[at : at + tensor.num_bytes]
            found[tensor.name] = part.view(DTYPES[tensor.dtype]).view(tensor.shape)
            at += tensor.num_bytes
        return found

    def kind(self, kind: str) -> dict[str, Tensor]:
        """The tensors of one kind, by the name within it: `kind("parameter")` is what a checkpoint stores of the unit."""
        return {name.removeprefix(f"{kind}/"): tensor for name, tensor in self.tensors.items() if name.startswith(f"{kind}/")}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """First words of the names, sorted."""
        return tuple(sorted({tensor.name.partition("/")[0] for tensor in self.form.tensors}))

    @property
    def content(self) -> memoryview:
        """`data`, without a copy."""
        values: Any = self.data.numpy()
        return memoryview(values)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it, 32 bytes. The first use hashes (1.7 GB/s with SHA-NI): call it in a thread."""
        found = state_hash(self.unit, self.version, self.chain, self.form)
        found.update(self.content)
        digest: bytes = found.digest()
        return digest

    def header(self) -> StateHeader:
        """What is sent before the bytes; it has the digest, so the same holds as for that."""
        return StateHeader(unit=self.unit, version=self.version, chain=self.chain, form=self.form, digest=self.digest)

    def first_odd(self) -> str | None:
        """The name of the first tensor with NaN or an infinity; None if all values are finite. One pass over the values."""
        return next((name for name, tensor in self.tensors.items() if not _is_finite(tensor)), None)


def form_of(tensors: Mapping[str, Tensor]) -> Form:
    """Names, dtypes and shapes of these tensors, from any device, the meta device included; BadRequestError as `UnitSnapshot.of`."""
    for name, tensor in tensors.items():
        if tensor.dtype not in SPELLED:
            raise BadRequestError(f"tensor {name!r} is {tensor.dtype}; a state holds {', '.join(map(str, SPELLED))}")
    return Form.of(TensorForm(name, SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items())


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.element_size() < 2 else tensor  # torch has no minimum of 8-bit floats
    return all(map(math.isfinite, values.aminmax()))
