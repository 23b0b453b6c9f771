"""How a model's tensors lie in our cache: ordinary safetensors files.

The layout is computed from the manifest alone.

A shard is one file: the tensors of one block (names alike up to their first number, as `model.layers.3.`), or one tensor that has no
number (embedding, norm, head). Files are numbered; no name from another peer becomes a file's name. Pure.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, raw data without holes).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from protocols.errors import CheckpointError
from protocols.pieces import MAX_PIECES
from protocols.weights import ITEM_BYTES, PIECE_BYTES, Manifest, TensorEntry
from swarm.checkpoints.numbered import block_of, block_prefix, first_number
from swarm.checkpoints.stored import INDEX, TensorInfo
from swarm.checkpoints.tensor_part import TensorPart, byte_ranges

MANIFEST = "manifest"
"""The canonical manifest in a model's folder; its presence says that the folder is a cache of ours."""

MAX_MODEL_PIECES = 16 << 20
"""Of all tensors of a model together: 16 TiB. Bitmaps of them take 2 MiB; nothing of a larger model is reserved."""


@dataclass(frozen=True)
class Shard:
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


@dataclass(frozen=True)
class Wanted:
    """What a download fetches of one shard."""

    shard: Shard
    pieces: Mapping[int, tuple[range, ...]]
    """By tensor: runs of its pieces, in order."""
    num_bytes: int
    """Of these pieces."""
    is_whole: bool
    """All of the shard: it becomes a file that opens. Else the pieces stay in its `.part`."""


class Layout:
    """Shards of a manifest; the same for every peer that has it."""

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
            block = first_number(entry.name)
            groups.setdefault(f"{''.join(block)}." if block else entry.name, []).append(number)
        self.shards = tuple(_shard(number, key, groups[key], manifest.entries) for number, key in enumerate(groups))
        self.shard_of = {tensor: shard for shard in self.shards for tensor in shard.tensors}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each tensor, by name."""
        return {entry.name: number for number, entry in enumerate(self.manifest.entries)}

    def number(self, name: str) -> int:
        """A tensor's number; CheckpointError if the model has no such tensor."""
        if name not in self.numbers:
            raise CheckpointError(f"model {self.manifest.digest[:12]} has no tensor {name!r}")
        return self.numbers[name]

    def shards_with(self, names: Iterable[str]) -> tuple[Shard, ...]:
        """The shards that hold these tensors; CheckpointError names one that the model has not."""
        found = {shard.number: shard for shard in (self.shard_of[self.number(name)] for name in names)}
        return tuple(found[number] for number in sorted(found))

    def whole(self, names: Iterable[str]) -> tuple[Wanted, ...]:
        """All of the shards that hold these tensors."""
        entries = self.manifest.entries
        return tuple(
            self._wanted(shard, {tensor: (range(entries[tensor].num_pieces),) for tensor in shard.tensors}, is_whole=True)
            for shard in self.shards_with(names)
        )

    def covering(self, parts: Iterable[TensorPart]) -> tuple[Wanted, ...]:
        """The pieces that hold a byte of these parts, and no others. CheckpointError: no such tensor; BadRequestError: as `byte_ranges`."""
        runs: dict[int, list[range]] = {}
        for part in parts:
            tensor = self.number(part.name)
            runs.setdefault(tensor, []).extend(byte_ranges(self.manifest.entries[tensor], part.cut).pieces())
        pieces: dict[int, dict[int, tuple[range, ...]]] = {}
        for tensor, found in runs.items():
            pieces.setdefault(self.shard_of[tensor].number, {})[tensor] = _joined(found)
        return tuple(self._wanted(self.shards[number], pieces[number], is_whole=False) for number in sorted(pieces))

    def _wanted(self, shard: Shard, pieces: Mapping[int, tuple[range, ...]], *, is_whole: bool) -> Wanted:
        entries = self.manifest.entries
        num_bytes = sum(
            min(run.stop * PIECE_BYTES, entries[tensor].num_bytes) - run.start * PIECE_BYTES
            for tensor, runs in pieces.items()
            for run in runs
        )
        return Wanted(shard, pieces, num_bytes, is_whole)

    @cached_property
    def blocks(self) -> tuple[Shard, ...]:
        """The shards that are blocks of the model."""
        prefix = block_prefix((entry.name, entry.num_bytes) for entry in self.manifest.entries)
        return tuple(shard for shard in self.shards if prefix is not None and block_of(shard.key, prefix) is not None)

    def index(self) -> bytes:
        """The content of `model.safetensors.index.json`."""
        weight_map = {entry.name: self.shard_of[number].file for number, entry in enumerate(self.manifest.entries)}
        total = sum(entry.num_bytes for entry in self.manifest.entries)
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1).encode()

    def infos(self, directory: Path) -> dict[str, TensorInfo]:
        """Where every tensor lies, or will, once its shard is there."""
        return {
            entry.name: TensorInfo(entry.name, entry.dtype, entry.shape, directory / shard.file, start, start + entry.num_bytes)
            for shard in self.shards
            for entry, start in zip((self.manifest.entries[tensor] for tensor in shard.tensors), shard.starts, strict=True)
        }


def _joined(runs: list[range]) -> tuple[range, ...]:
    """The same pieces, each once, in order."""
    joined: list[range] = []
    for run in sorted(runs, key=lambda run: run.start):
        if joined and run.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, run.stop))
        else:
            joined.append(run)
    return tuple(joined)


def _shard(number: int, key: str, tensors: list[int], entries: tuple[TensorEntry, ...]) -> Shard:
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
    return Shard(
        number, key, tuple(order), struct.pack("<Q", len(text)) + text, tuple(start + offset for offset in offsets), start + at
    )


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a folder of our cache; None where it is none."""
    try:
        return Manifest.from_canonical((directory / MANIFEST).read_bytes()) if (directory / INDEX).exists() else None
    except FileNotFoundError:
        return None
