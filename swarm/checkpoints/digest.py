"""From files to a manifest of a model's weights.

Weights are hashed once, remembered, and checked tensor by tensor.

Tensors are hashed as they are stored, in pieces of 1 MiB, so how they are split over files does not matter, and a peer can check
a single piece that it fetched. The canonical form and the digest are in `protocols/weights.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from protocols.errors import BadRequestError, CheckpointError, ModelMismatchError
from protocols.weights import PIECE_BYTES, FileEntry, Manifest, TensorEntry, canonical_config, tensor_root
from swarm.checkpoints.chat_template import TEMPLATES
from swarm.checkpoints.stored import TensorInfo

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json"),
)
FILES = ("generation_config.json", *TOKENIZER_FILES)
"""What a manifest lists beside config and tensors: all that decides which ids a text becomes, and where an answer ends. Also the
files that `is_small_file` knows by their pattern."""

_PATTERN = re.compile(rf"{TEMPLATES}/[\w-]{{1,64}}\.jinja|tokenizer\.\d{{1,4}}(\.\d{{1,4}}){{0,3}}\.json", re.ASCII)
"""Chat templates with names, and tokenizers for one version of transformers (`fast_tokenizer_files`)."""

MAX_PATTERN_FILES = 32
"""Files of these patterns in one checkpoint; the rest is left out."""

MAX_FILE_BYTES = 256 << 20
MAX_CACHED_BYTES = 80 << 20
THREADS = 4

Progress = Callable[[int, int], None]
"""Called with (bytes hashed, bytes in all), now and then, from a worker thread."""


class HashedCheckpoint(Protocol):
    """What is hashed of a checkpoint: its tensors, its config, and the small files beside them."""

    @property
    def path(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def raw_config(self) -> Mapping[str, Any]: ...


def is_small_file(name: str) -> bool:
    """May a manifest list this file? Nothing else is taken from peers."""
    return name in FILES or _PATTERN.fullmatch(name) is not None


def small_files(directory: Path) -> list[str]:
    """The files of a checkpoint that its manifest lists, sorted."""
    found = [*directory.glob(f"{TEMPLATES}/*.jinja"), *directory.glob("tokenizer.*.json")]
    named = sorted(name for path in found if _PATTERN.fullmatch(name := path.relative_to(directory).as_posix()))
    return sorted(name for name in (*FILES, *named[:MAX_PATTERN_FILES]) if (directory / name).is_file())


def build_manifest(checkpoint: HashedCheckpoint, cache_dir: Path | None, progress: Progress | None = None) -> Manifest:
    """The manifest of a checkpoint. Reads every weight the first time, about 1 GB a second a core; later the remembered one.

    cache_dir: where manifests are remembered, by path, size and time of every file; None = nowhere.
    """
    stamp = _stamp(checkpoint)
    place = (
        None if cache_dir is None else cache_dir / f"{hashlib.sha256(str(checkpoint.path).encode()).hexdigest()[:32]}.manifest"
    )
    if place is not None and (known := _recall(place, stamp)) is not None:
        return known
    infos = sorted(checkpoint.tensors.values(), key=lambda info: (info.file, info.start))
    roots = _roots(infos, progress)
    entries = (TensorEntry(info.name, info.dtype, info.shape, roots[info.name]) for info in infos)
    manifest = Manifest(tuple(sorted(entries)), canonical_config(checkpoint.raw_config), file_entries(checkpoint.path))
    if place is not None:
        _remember(place, stamp, manifest)
    return manifest


def verify(
    checkpoint: HashedCheckpoint, manifest: Manifest, tensor_names: Collection[str], progress: Progress | None = None
) -> None:
    """Check the config and these stored tensors against a manifest; ModelMismatchError names the first thing that differs."""
    if canonical_config(checkpoint.raw_config) != manifest.config:
        raise ModelMismatchError(f"{checkpoint.path}/config.json differs from the config of model {manifest.digest[:12]}…")
    listed = {entry.name: entry for entry in manifest.entries}
    names = sorted(tensor_names)
    for name in names:
        entry, info = listed.get(name), checkpoint.tensors.get(name)
        if entry is None or info is None:
            where = "here" if info is None else f"model {manifest.digest[:12]}…"
            raise ModelMismatchError(f"tensor {name!r} does not exist in {where}; use the same checkpoint as the swarm")
        if (entry.dtype, entry.shape) != (info.dtype, info.shape):
            raise ModelMismatchError(
                f"tensor {name!r} is {info.dtype} {list(info.shape)} in {checkpoint.path}, but {entry.dtype} {list(entry.shape)} in "
                f"model {manifest.digest[:12]}…; use the same checkpoint as the swarm"
            )
    roots = _roots([checkpoint.tensors[name] for name in names], progress)
    for name in names:
        if roots[name] != listed[name].root:
            raise ModelMismatchError(
                f"tensor {name!r} in {checkpoint.path} has other values than in model {manifest.digest[:12]}…; "
                "use the same checkpoint as the swarm, or another model name"
            )


def _roots(infos: Collection[TensorInfo], progress: Progress | None) -> dict[str, bytes]:
    """Root of each tensor; hashing leaves the interpreter lock, so a few threads help."""
    total = sum(info.stop - info.start for info in infos)
    done, lock = 0, threading.Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="hash") as pool:
        return dict(zip([info.name for info in infos], pool.map(lambda info: _root(info, advance), infos), strict=True))


def _root(info: TensorInfo, advance: Callable[[int], None]) -> bytes:
    hashes = []
    try:
        with info.file.open("rb") as file:
            file.seek(info.start)
            left = info.stop - info.start
            while left:
                piece = file.read(min(PIECE_BYTES, left))
                if len(piece) < min(PIECE_BYTES, left):
                    raise CheckpointError(f"{info.file} became shorter while it was read: tensor {info.name!r} is cut off")
                hashes.append(hashlib.sha256(piece).digest())
                left -= len(piece)
                advance(len(piece))
    except OSError as error:
        raise CheckpointError(f"cannot read tensor {info.name!r} from {info.file}: {error.strerror or error}") from error
    return tensor_root(hashes)


def file_entries(directory: Path) -> tuple[FileEntry, ...]:
    """What a manifest says of the small files of a checkpoint, or of a folder with a tokenizer. CheckpointError: one is too large."""
    files = []
    for name in small_files(directory):
        path = directory / name
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; such a file has at most {MAX_FILE_BYTES}")
        files.append(FileEntry(name, hashlib.sha256(path.read_bytes()).digest()))
    return tuple(files)


def _stamp(checkpoint: HashedCheckpoint) -> str:
    """Changes whenever a file that enters the manifest does."""
    paths = {info.file for info in checkpoint.tensors.values()} | {
        checkpoint.path / name for name in ("config.json", *small_files(checkpoint.path))
    }
    found = [(path, path.stat()) for path in sorted(paths) if path.exists()]
    names = hashlib.sha256("\n".join(sorted(checkpoint.tensors)).encode()).hexdigest()
    return json.dumps([3, names, [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]])


def _recall(place: Path, stamp: str) -> Manifest | None:
    """The remembered manifest; None if there is none, files changed since, or it is damaged."""
    try:
        if place.stat().st_size > MAX_CACHED_BYTES:
            return None
        header, _, body = place.read_bytes().partition(b"\n")
        return Manifest.from_canonical(body) if header.decode() == stamp else None
    except (OSError, ValueError, BadRequestError):
        return None


def _remember(place: Path, stamp: str, manifest: Manifest) -> None:
    """Written beside and moved into place: two nodes that start together never read half of it. A full disk only costs time."""
    fresh = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}.new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(stamp.encode() + b"\n" + manifest.canonical())
        fresh.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
