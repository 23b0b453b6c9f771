"""The cache of fetched models: a folder for each digest.

Folders have Hugging Face's form, so that what opens a checkpoint opens them:

    weights/<digest>.lock                  shared by users of the model, exclusive for its removal; its time = last used
    weights/<digest>/manifest              what the digest stands for
    weights/<digest>/config.json, tokenizer files, model.safetensors.index.json
    weights/<digest>/unit-00003.safetensors     one block, or one tensor outside of blocks; `.part` and `.journal` until it is whole

Two processes may fetch into one folder at once: each shard has a lock of its own (`shard_file.py`). All here is blocking.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocols.errors import DiskFullError, SwarmError
from protocols.ids import ModelId
from protocols.weights import Manifest
from swarm import files, use_lock
from swarm.checkpoints.bounds import check_config
from swarm.checkpoints.layout import MANIFEST, Layout, Shard, Wanted, read_manifest
from swarm.checkpoints.stored import INDEX
from swarm.checkpoints.tensor_part import TensorPart, byte_ranges
from swarm.suggestion import cache_command
from swarm.weights.shard_file import Place, ShardFile

ABOUT = "about.json"
_NUMBERS = itertools.count()
"""Of files that are being written: two peers may give one file at once."""
_SPARE_BYTES = 16 << 20
"""Bytes that a download leaves free on the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One model of the cache, for people."""

    model: ModelId
    num_bytes: int
    """On disk, unfinished shards included."""
    blocks_here: int
    num_blocks: int
    is_complete: bool
    """Every tensor is there."""
    last_used_s: float
    """Unix time."""
    is_in_use: bool
    """A running process holds it."""


class ModelCache:
    """The folder of one model, held (shared) until `close`."""

    def __init__(self, root: Path, model: ModelId, manifest: Manifest) -> None:
        """Make the folder where it is absent. Refuses a config that asks for code or absurd sizes, before anything is written."""
        assert manifest.digest == model.digest
        config = json.loads(manifest.config)
        check_config(config, f"the config of {model.name}@{model.digest[:12]}")
        self.model, self.manifest, self.layout = model, manifest, Layout(manifest)
        self.directory = root / model.digest
        self._opening = threading.Lock()
        self._shards: dict[int, ShardFile] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._lock = use_lock.hold(_lock(root, model.digest))
        try:
            self._write_files(json.dumps(config, indent=2).encode())
        except BaseException:
            self.close()
            raise

    def _write_files(self, config: bytes) -> None:
        self.directory.mkdir(exist_ok=True)
        self.write(ABOUT, json.dumps({"name": self.model.name}).encode())
        wanted = {"config.json": lambda: config, INDEX: self.layout.index, MANIFEST: self.manifest.canonical}
        for name, content in wanted.items():
            if not (self.directory / name).exists():
                self.write(name, content())

    def write(self, name: str, content: bytes) -> None:
        """Put a small file there, whole or not at all. The name is one of ours (`is_small_file`)."""
        with self.incoming(name) as file:
            file.write(content)

    @contextlib.contextmanager
    def incoming(self, name: str) -> Iterator[BinaryIO]:
        """A file to write `name` into, which takes its place at the end of the block; if the block raises, nothing is left of it."""
        place = self.directory / name
        fresh = place.with_name(f".{place.name}.{os.getpid()}.{next(_NUMBERS)}")
        try:
            place.parent.mkdir(exist_ok=True)
            with fresh.open("wb") as file:
                yield file
            fresh.replace(place)
        except OSError as error:
            raise DiskFullError(
                f"cannot write {place}: {error.strerror or error}; free some space, or choose another --data-dir"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()

    def close(self) -> None:
        """Let go of the folder. Harmless when repeated."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)

    # --- tensors

    def shard(self, shard: Shard) -> ShardFile:
        """The one object of this process for a shard."""
        with self._opening:
            if shard.number not in self._shards:
                self._shards[shard.number] = ShardFile(self.directory, shard, self.manifest)
            return self._shards[shard.number]

    def absent(self, names: Iterable[str]) -> tuple[Shard, ...]:
        """The shards that are still to be fetched for these tensors."""
        return tuple(shard for shard in self.layout.shards_with(names) if not self.shard(shard).is_complete)

    def locate(self, tensor: int) -> Place | None:
        """Where a tensor lies, whole or in part; None while no piece of it is here."""
        return self.shard(self.layout.shard_of[tensor]).place(tensor)

    def read(self, part: TensorPart) -> bytes:
        """The bytes of one part, in the order in which the tensor has them. CheckpointError: not all of them were fetched."""
        tensor = self.layout.number(part.name)
        return self.shard(self.layout.shard_of[tensor]).read(tensor, byte_ranges(self.manifest.entries[tensor], part.cut))

    def check_room(self, wanted: Iterable[Wanted], most_bytes: int = 0) -> None:
        """DiskFullError where these do not fit the disk, or all models together not into `most_bytes` (0 = any number)."""
        needed = sum(self._needed_bytes(one) for one in wanted)
        if needed <= 0:
            return
        root = self.directory.parent
        held = sum(files.on_disk(path) for path in root.glob("*/*")) if most_bytes else 0
        if most_bytes and held + needed > most_bytes:
            raise DiskFullError(
                f"{self.model.name} needs {needed / 1e6:.0f} MB more at {root}, which holds {held / 1e6:.0f} MB; all together may take "
                f"{most_bytes / 1e6:.0f} MB (--disk-gb): raise that, host fewer blocks, or free some "
                f"(`{cache_command(root.parent, 'prune')}`)"
            )
        free = shutil.disk_usage(self.directory).free
        if needed + _SPARE_BYTES > free:
            raise DiskFullError(
                f"the disk is too full for {self.model.name} at {self.directory.parent}: {needed / 1e6:.0f} MB more are needed, "
                f"{free / 1e6:.0f} MB are free; free some (`{cache_command(self.directory.parent.parent, 'prune')}`), "
                "host fewer blocks, or choose another --data-dir"
            )

    def _needed_bytes(self, wanted: Wanted) -> int:
        """What this takes of the disk beyond what is there. Of a part, what is there is known while the shard is `locked`."""
        file = self.shard(wanted.shard)
        if wanted.is_whole:
            return wanted.shard.num_bytes - files.on_disk(file.part)
        entries = self.manifest.entries
        return sum(entries[tensor].piece_bytes(piece) for tensor, pieces in file.missing(wanted).items() for piece in pieces)


def find(root: Path, name: str, digest: str = "") -> tuple[ModelId, Manifest] | None:
    """The model of the cache that goes by this name (and a digest that begins so), used last; None where there is none."""
    found = [one for one in _models(root) if one[0].name == name and one[0].digest.startswith(digest)]
    newest = max(found, key=lambda one: use_lock.last_use_s(_lock(root, one[0].digest)), default=None)
    return newest


def listed(root: Path) -> list[CachedModel]:
    """What the cache holds, the one used last first."""
    rows = [_described(root, model, manifest) for model, manifest in _models(root)]
    return sorted(rows, key=lambda row: -row.last_used_s)


def remove(root: Path, digest: str) -> bool:
    """Delete one model; False where a running process uses it."""
    with use_lock.unused(_lock(root, digest)) as is_free:
        if is_free:
            shutil.rmtree(root / digest)
    return is_free


def _lock(root: Path, digest: str) -> Path:
    return root / f"{digest}.lock"


def _models(root: Path) -> list[tuple[ModelId, Manifest]]:
    found = []
    for directory in sorted(root.glob("?" * 64)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SwarmError):  # not ours, or only half made
            manifest = read_manifest(directory)
            model = ModelId(json.loads((directory / ABOUT).read_bytes())["name"], directory.name)
            if manifest and manifest.digest == model.digest:
                found.append((model, manifest))
    return found


def _described(root: Path, model: ModelId, manifest: Manifest) -> CachedModel:
    directory, layout = root / model.digest, Layout(manifest)
    here = {shard.number for shard in layout.shards if (directory / shard.file).exists()}
    return CachedModel(
        model=model,
        num_bytes=sum(files.on_disk(path) for path in directory.iterdir()),
        blocks_here=sum(shard.number in here for shard in layout.blocks),
        num_blocks=len(layout.blocks),
        is_complete=len(here) == len(layout.shards),
        last_used_s=use_lock.last_use_s(_lock(root, model.digest)),
        is_in_use=use_lock.is_used(_lock(root, model.digest)),
    )
