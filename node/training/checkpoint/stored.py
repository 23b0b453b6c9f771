"""A checkpoint on this disk, read unit by unit.

What is loaded has the digest that its snapshot had when it was written: names, shapes, dtypes, and every bit of weights and moments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from node.training.checkpoint import contents
from node.training.checkpoint.contents import Contents, TrainedUnit
from protocols.errors import CheckpointError, SpanNotServedError
from protocols.ids import Span
from protocols.units import Blocks, Unit
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.models.storing import read_tensors
from swarm.training.snapshot import PARAMETER, UnitSnapshot


@dataclass(frozen=True)
class StoredCheckpoint:
    """One published checkpoint. All here is blocking."""

    path: Path
    contents: Contents

    @classmethod
    def open(cls, path: Path) -> StoredCheckpoint:
        """CheckpointError if the list is damaged, or a file is missing or has another size."""
        found = contents.read(path)
        for name, facts in found.files.items():
            try:
                num_bytes = (path / name).stat().st_size
            except OSError as error:
                raise CheckpointError(f"cannot read {path / name}: {error.strerror or error}") from error
            if num_bytes != facts.num_bytes:
                raise CheckpointError(f"{path / name} has {num_bytes} bytes, expected {facts.num_bytes}")
        return cls(path, found)

    @property
    def version(self) -> int:
        return self.contents.version

    @property
    def chains(self) -> Mapping[TrainedUnit, bytes]:
        return {unit: facts.chain for unit, facts in self.contents.units.items()}

    def load(self, unit: Unit) -> UnitSnapshot:
        """One unit's state as it was written, bit for bit. SpanNotServedError: no such unit; CheckpointError: a file is damaged."""
        facts = self.contents.units.get(unit) if isinstance(unit, TrainedUnit) else None
        if facts is None or not isinstance(unit, TrainedUnit):
            raise SpanNotServedError(f"{self.path} holds {len(self.contents.units)} units, and {unit} is none of them")
        state = read_tensors(self.path / contents.state_file(unit))
        tensors = {**{f"{PARAMETER}/{name}": tensor for name, tensor in self._weights(unit).items()}, **state}
        snapshot = UnitSnapshot.of(unit=unit, version=self.version, chain=facts.chain, tensors=tensors)
        if snapshot.digest != facts.digest:
            raise CheckpointError(
                f"{unit} of {self.path} is not what was written: its digest is {snapshot.digest.hex()[:12]}…, not "
                f"{facts.digest.hex()[:12]}…; remove this checkpoint, and go on from an older one"
            )
        return snapshot

    def _weights(self, unit: TrainedUnit) -> Mapping[str, Tensor]:
        if isinstance(unit, Blocks):
            return load_parts(self._opened, Span(unit.start, unit.stop), dtype=torch.float32)[1].tensors()
        return load_ends(self._opened, dtype=torch.float32).tensors()

    @cached_property
    def _opened(self) -> Checkpoint:
        return open_checkpoint(self.path)

    def verify(self) -> None:
        """Hash every file; CheckpointError names one that is not as it was written."""
        for name, facts in self.contents.files.items():
            with (self.path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts.sha256:
                    raise CheckpointError(f"{self.path / name} is damaged: its SHA-256 is another one than when it was written")
