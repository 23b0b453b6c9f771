"""Tiny real models as runs: their snapshots, and their checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from node.training.checkpoint.contents import RunModel, TrainedUnit
from node.training.checkpoint.folder import CheckpointFolder
from node.training.checkpoint.writer import CheckpointWriter
from protocols.ids import ModelId, Span
from protocols.runs import BatchRule, DataRule, RunSpec
from protocols.units import Blocks
from swarm.checkpoints.digest import small_files
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.training.snapshot import PARAMETER, UnitSnapshot
from tests.families import FAMILIES, add_byte_tokenizer, write_checkpoint

TIED = ("llama", "gpt2")
KINDS = ("mean", "square")


def spec(name: str = "prose", seed: int = 0) -> RunSpec:
    return RunSpec(
        name=name,
        seed=seed,
        data=DataRule(digest="da" * 32, sequence_tokens=8),
        batch=BatchRule(steps=100, batch_tokens=64, micro_batch_sequences=2),
    )


@dataclass(frozen=True)
class Run:
    """A model of version 0 on disk, and what a stage would hold of it at other versions."""

    model: RunModel
    base: Checkpoint
    loaded: dict[TrainedUnit, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    def chain(self, unit: TrainedUnit, version: int) -> bytes:
        return hashlib.sha256(f"{unit} {version}".encode()).digest() if version else b""

    @property
    def chains(self) -> dict[TrainedUnit, bytes]:
        return {unit: self.chain(unit, 40) for unit in self.model.units}

    def parameters(self, unit: TrainedUnit) -> Mapping[str, torch.Tensor]:
        """Of version 0, loaded once."""
        if unit not in self.loaded:
            if isinstance(unit, Blocks):
                self.loaded[unit] = load_parts(self.base, Span(unit.start, unit.stop), dtype=torch.float32)[1].tensors()
            else:
                self.loaded[unit] = load_ends(self.base, dtype=torch.float32).tensors()
        return self.loaded[unit]

    def snapshot(self, unit: TrainedUnit, version: int) -> UnitSnapshot:
        """Weights moved by the version, with moments beside them."""
        draw = torch.Generator().manual_seed(version)
        tensors: dict[str, torch.Tensor] = {}
        for name, own in self.parameters(unit).items():
            moved = own + 0.01 * torch.randn(own.shape, generator=draw) if version and own.is_floating_point() else own
            tensors[f"{PARAMETER}/{name}"] = moved
            tensors |= {f"{kind}/{name}": torch.randn(own.shape, generator=draw) for kind in KINDS}
        return UnitSnapshot.of(unit=unit, version=version, chain=self.chain(unit, version), tensors=tensors)

    def snapshots(self, version: int) -> Iterator[UnitSnapshot]:
        return (self.snapshot(unit, version) for unit in self.model.units)

    def write(self, folder: CheckpointFolder, version: int, best: int | None = None) -> Path:
        with CheckpointWriter(folder, self.model, version) as writer:
            for snapshot in self.snapshots(version):
                writer.add(snapshot)
            return writer.publish(best)


def make_run(directory: Path, family: str = "llama", num_blocks: int = 3) -> Run:
    config: Any = FAMILIES[family]()
    config.tie_word_embeddings = family in TIED
    config.num_hidden_layers = num_blocks
    write_checkpoint(config, directory)
    add_byte_tokenizer(directory)
    return opened_run(directory)


def opened_run(directory: Path) -> Run:
    base = open_checkpoint(directory)
    raw = json.loads((directory / "config.json").read_bytes())
    files = {name: (directory / name).read_bytes() for name in small_files(directory)}
    run = ModelId("prose", "ab" * 32)
    return Run(RunModel(run=run, spec=spec(), num_blocks=base.num_blocks, config=raw, files=files), base)
