"""How a model's tensors lie in our cache: one ordinary safetensors file per unit, header and all computed from the manifest alone.

A unit is what is fetched as a whole: the tensors of one block (names alike up to their first number, as `model.layers.3.`), or one tensor
that has no number (embedding, norm, head). Files are numbered; no name that a stranger chose becomes a file's name. Pure.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, raw data without holes).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from protocols.errors import CheckpointError
from protocols.pieces import MAX_PIECES
from protocols.weights import ITEM_BYTES, Manifest, TensorEntry
from swarm.models.stored import INDEX, TensorInfo

MANIFEST = "manifest"
"""The canonical manifest in a model's folder; its presence says that the folder is a cache of ours."""

MAX_MODEL_PIECES = 16 << 20
"""Of all tensors of a model together: 16 TiB. Bitmaps of them take 2 MiB; nothing of a larger model is reserved."""

_NUMBERED = re.compile(r"(.*?(?:^|\.)\d{1,5})\.")


@dataclass(frozen=True)
class Unit:
    """One safetensors file of the cache."""

    number: int
    key: str
    """What its tensors' names begin with, or the one name."""
    tensors: tuple[int, ...]
    """Numbers of its tensors in the manifest, in the order of their bytes."""
    header: bytes
    """The file's first bytes."""
    starts: tuple[int, ...]
    """Where each tensor begins in the file."""
    num_bytes: int
    """Of the file, header included."""

    @property
    def file(self) -> str:
        return f"unit-{self.number:05}.safetensors"


class Layout:
    """Units of a manifest; the same for everybody who has it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        groups: dict[str, list[int]] = {}
        num_pieces = 0
        for number, entry in enumerate(manifest.entries):
            if entry.name == "__metadata__":  # in a safetensors header this is no tensor
                raise CheckpointError(
                    "a tensor named '__metadata__' cannot be stored; the manifest is not that of an honest model"
                )
            if entry.num_pieces > MAX_PIECES:
                raise CheckpointError(
                    f"tensor {entry.name!r} has {entry.num_bytes} bytes; at most {MAX_PIECES} MiB can be fetched"
                )
            num_pieces += entry.num_pieces
            if num_pieces > MAX_MODEL_PIECES:
                raise CheckpointError(
                    f"the model has more than {MAX_MODEL_PIECES >> 20} TiB of tensors, which is the most that is fetched; "
                    "the manifest is not that of an honest model"
                )
            match = _NUMBERED.match(entry.name)
            groups.setdefault(f"{match[1]}." if match else entry.name, []).append(number)
        self.units = tuple(_unit(number, key, groups[key], manifest.entries) for number, key in enumerate(groups))
        self.unit_of = {tensor: unit for unit in self.units for tensor in unit.tensors}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each tensor, by name."""
        return {entry.name: number for number, entry in enumerate(self.manifest.entries)}

    def units_with(self, names: Iterable[str]) -> tuple[Unit, ...]:
        """The units that hold these tensors; CheckpointError names one that the model has not."""
        found = {}
        for name in names:
            if name not in self.numbers:
                raise CheckpointError(f"model {self.manifest.digest[:12]} has no tensor {name!r}")
            unit = self.unit_of[self.numbers[name]]
            found[unit.number] = unit
        return tuple(found[number] for number in sorted(found))

    @cached_property
    def blocks(self) -> tuple[Unit, ...]:
        """The units that are blocks of the model: of all prefixes with numbers behind, those of the heaviest one."""
        weights: dict[str, int] = {}
        for unit in self.units:
            weights[_stem(unit.key)] = weights.get(_stem(unit.key), 0) + unit.num_bytes
        heaviest = max((stem for stem in weights if stem), key=lambda stem: weights[stem], default=None)
        return tuple(unit for unit in self.units if _stem(unit.key) == heaviest)

    def index(self) -> bytes:
        """The content of `model.safetensors.index.json`."""
        weight_map = {entry.name: self.unit_of[number].file for number, entry in enumerate(self.manifest.entries)}
        total = sum(entry.num_bytes for entry in self.manifest.entries)
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1).encode()

    def infos(self, directory: Path) -> dict[str, TensorInfo]:
        """Where every tensor lies, or will, once its unit is there."""
        return {
            entry.name: TensorInfo(entry.name, entry.dtype, entry.shape, directory / unit.file, start, start + entry.num_bytes)
            for unit in self.units
            for entry, start in zip((self.manifest.entries[tensor] for tensor in unit.tensors), unit.starts, strict=True)
        }


def _stem(key: str) -> str:
    """`model.layers.` of `model.layers.3.`; "" where the unit is a single tensor."""
    match = re.fullmatch(r"(.*?)\d{1,5}\.", key)
    return match[1] or "." if match else ""


def _unit(number: int, key: str, tensors: list[int], entries: tuple[TensorEntry, ...]) -> Unit:
    order = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[entries[tensor].dtype], tensor))  # so that every value is aligned
    header, offsets, at = {}, [], 0
    for tensor in order:
        entry = entries[tensor]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, at + entry.num_bytes]}
        offsets.append(at)
        at += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return Unit(
        number, key, tuple(order), struct.pack("<Q", len(text)) + text, tuple(start + offset for offset in offsets), start + at
    )


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a folder of our cache; None where it is none."""
    try:
        return Manifest.from_canonical((directory / MANIFEST).read_bytes()) if (directory / INDEX).exists() else None
    except FileNotFoundError:
        return None
