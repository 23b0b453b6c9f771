"""Version 0 of a run: its manifest, and weights drawn by unit.

The first participant draws every unit once and hashes it (`manifest_of_run`): the manifest's roots say what version 0 is. A stage
draws its own units into its folder of the weight cache (`draw_checkpoint` with the manifest). If its CPU draws other bits than the
first participant's, those tensors are fetched from peers as those of any model. At no time is more than one unit in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protocols.errors import DiskFullError, ModelMismatchError
from protocols.runs import RunSpec
from protocols.units import Blocks, Ends, Unit
from protocols.weights import PIECE_BYTES, Manifest, TensorEntry, canonical_config, difference, tensor_root
from swarm import files
from swarm.checkpoints.digest import Progress, build_manifest, file_entries
from swarm.checkpoints.layout import MANIFEST, Layout, Shard
from swarm.checkpoints.stored import INDEX
from swarm.models.checkpoint import Checkpoint
from swarm.models.fresh import FreshModel

_NOT_DRAWN = bytes(32)
"""Stands for the root of a tensor that is not known yet."""


def manifest_of_run(
    config: Any, spec: RunSpec, tokenizer: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """The manifest of a run that begins with weights drawn from `spec.seed`.

    config: of transformers; tokenizer: the folder of its files, which the manifest lists; progress: called with (units drawn, all).
    Takes the memory of the largest unit, and about 2 s for 100 million values. ModelNotSupportedError as `FreshModel`.
    """
    model = FreshModel(config)
    entries = list[TensorEntry]()
    for number, unit in enumerate(model.units, 1):
        entries += _entries(model, {name: _root(tensor) for name, tensor in model.draw(unit, spec.seed).items()})
        if progress is not None:
            progress(number, len(model.units))
    small = () if tokenizer is None else file_entries(tokenizer)
    return Manifest(tuple(sorted(entries)), canonical_config(model.config), small, spec)


def manifest_of_base(checkpoint: Checkpoint, spec: RunSpec, cache_dir: Path | None, progress: Progress | None = None) -> Manifest:
    """The manifest of a run that begins with a checkpoint's weights, config and tokenizer.

    cache_dir, progress: as `build_manifest`. ModelMismatchError if the checkpoint is not the one that `spec.base` names.
    """
    base = build_manifest(checkpoint, cache_dir, progress)
    if base.digest != spec.base:
        raise ModelMismatchError(
            f"run {spec.name!r} begins with model {spec.base[:12]}…, but {checkpoint.path} is model {base.digest[:12]}…; "
            "use the same checkpoint as the run's first participant"
        )
    return replace(base, run=spec)


def draw_checkpoint(
    config: Any, seed: int, units: Collection[Unit], directory: Path, manifest: Manifest | None = None
) -> tuple[str, ...]:
    """Write freshly drawn units into `directory`, in the form of our weight cache: a file per block, and one per other tensor.

    Without `manifest`: the directory is a checkpoint that opens anywhere once all units were drawn, by one call or several.
    With the manifest of the run: it is also a folder of our cache, which opens when any unit was drawn. Tensors whose roots differ are not
    kept; their names are returned, to be fetched from peers. ModelMismatchError: the config makes other tensors than the manifest lists.
    units: `Blocks` of any span, and `Ends`. A file appears whole or not at all; what is there already is left as it is.
    DiskFullError: the disk is full; ModelNotSupportedError as `FreshModel`.
    """
    model = FreshModel(config)
    layout = Layout(manifest or _without_roots(model))
    if manifest is not None:
        _check_tensors(model, manifest)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_small_files(layout, directory, is_cache=manifest is not None)
        wanted = [unit for unit in model.units if any(_is_in(unit, one) for one in units)]
        return tuple(name for unit in wanted for name in _draw_unit(model, seed, unit, layout, directory, manifest))
    except OSError as error:
        raise DiskFullError(f"cannot write {directory}: {error.strerror or error}; free some space") from error


def _is_in(unit: Blocks | Ends, wanted: Unit) -> bool:
    return unit == wanted or (
        isinstance(unit, Blocks) and isinstance(wanted, Blocks) and wanted.start <= unit.start < unit.stop <= wanted.stop
    )


def _draw_unit(
    model: FreshModel, seed: int, unit: Blocks | Ends, layout: Layout, directory: Path, manifest: Manifest | None
) -> Iterator[str]:
    """Write one unit; the names of tensors that are not those of the manifest."""
    shards = [shard for shard in layout.shards_with(model.tensors[unit]) if not (directory / shard.file).exists()]
    if not shards:
        return
    drawn = model.draw(unit, seed)
    for shard in shards:
        entries = [layout.manifest.entries[tensor] for tensor in shard.tensors]
        odd = [entry.name for entry in entries if manifest is not None and _root(drawn[entry.name]) != entry.root]
        yield from odd
        if not odd:
            _write_shard(shard, [drawn[entry.name] for entry in entries], directory)


def _write_shard(shard: Shard, tensors: list[Tensor], directory: Path) -> None:
    fresh = directory / f".{shard.file}.{os.getpid()}.new"
    try:
        with fresh.open("wb") as file:
            file.write(shard.header)
            for tensor in tensors:
                file.write(_bytes(tensor))
        files.sync(fresh)  # what has the shard's name is believed to be whole
        fresh.replace(directory / shard.file)
    finally:
        fresh.unlink(missing_ok=True)


def _write_small_files(layout: Layout, directory: Path, *, is_cache: bool) -> None:
    config = json.dumps(json.loads(layout.manifest.config), indent=2).encode()
    wanted = {"config.json": config, INDEX: layout.index()} | ({MANIFEST: layout.manifest.canonical()} if is_cache else {})
    for name, content in wanted.items():
        if not (directory / name).exists():
            files.replace(directory / name, content)


def _check_tensors(model: FreshModel, manifest: Manifest) -> None:
    """ModelMismatchError unless the model has the names, dtypes and shapes that the manifest lists."""
    ours = _without_roots(model)
    theirs = replace(
        manifest,
        entries=tuple(entry._replace(root=_NOT_DRAWN) for entry in manifest.entries),
        config=ours.config,
        files=(),
        run=None,
    )
    if found := difference(ours, theirs):
        raise ModelMismatchError(
            f"the config makes other tensors than the manifest lists: {found}; is transformers the same version?"
        )


def _without_roots(model: FreshModel) -> Manifest:
    names = [name for tensors in model.tensors.values() for name in tensors]
    return Manifest(tuple(sorted(_entries(model, dict.fromkeys(names, _NOT_DRAWN)))), canonical_config(model.config))


def _entries(model: FreshModel, roots: Mapping[str, bytes]) -> list[TensorEntry]:
    shapes = {name: shape for tensors in model.tensors.values() for name, shape in tensors.items()}
    return [TensorEntry(name, shapes[name].dtype, shapes[name].shape, root) for name, root in roots.items()]


def _root(tensor: Tensor) -> bytes:
    data = _bytes(tensor)
    return tensor_root(hashlib.sha256(data[at : at + PIECE_BYTES]).digest() for at in range(0, len(data), PIECE_BYTES))


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, not copied; safetensors are little-endian, as are the machines that torch runs on."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
