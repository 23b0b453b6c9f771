"""Writes a checkpoint, unit by unit, and publishes it as a whole.

    with CheckpointWriter(folder, model, version) as writer:
        for snapshot in …:
            writer.add(snapshot)
        path = writer.publish()

No more than one unit is in memory. Every file is durable (fsync) and hashed before the list of files is written, the list before the folder
gets its name, so a crash at any moment leaves the older checkpoints as they were and at most a folder that `clean` removes. A full disk,
or any other error, removes what was written so far. All here is blocking.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.training.checkpoint import contents
from node.training.checkpoint.contents import Contents, FileFacts, RunModel, TrainedUnit, UnitFacts, state_file, weights_file
from node.training.checkpoint.folder import CheckpointFolder, facts_of
from protocols.errors import BadRequestError, CheckpointError, DiskFullError
from protocols.state import Form
from protocols.words import counted
from swarm import faults, files
from swarm.checkpoints.bounds import check_config
from swarm.checkpoints.stored import INDEX
from swarm.models.checkpoint import parse_config
from swarm.models.storing import stored_tensors, write_tensors
from swarm.training.snapshot import PARAMETER, UnitSnapshot
from swarm.training.unit_forms import parameter_form


class CheckpointWriter:
    """One checkpoint that is being written. DiskFullError or CheckpointError if it cannot be: the older ones stay good."""

    def __init__(self, folder: CheckpointFolder, model: RunModel, version: int) -> None:
        """Removes what dead processes have left, and writes the small files."""
        check_config(dict(model.config), f"the config of {model.run.name}")
        self._folder, self._model, self.version = folder, model, version
        self._units: dict[TrainedUnit, UnitFacts] = {}
        self._files: dict[str, FileFacts] = {}
        self._index: dict[str, str] = {}
        self._num_bytes = 0
        self._path, self._lock = Path(), -1
        self._working = threading.RLock()
        """Held while files are written: `abandon` of another thread waits for them."""
        with self._disk():
            folder.directory.mkdir(parents=True, exist_ok=True)
            folder.clean()
            self._path, self._lock = folder.begin(version)
        with self._abandoned_if_it_fails():
            config = in_float32(model.config)
            self._write("config.json", json.dumps(config, indent=2).encode())
            for name, content in model.files.items():
                self._write(name, content)
            self._config = parse_config(config, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abandon()

    def parameters(self, unit: TrainedUnit) -> Form:
        """Names, dtypes and shapes of the parameters that a unit's snapshot must have."""
        return parameter_form(self._config, unit)

    def add(self, snapshot: UnitSnapshot) -> None:
        """Write one unit: durable when this returns. BadRequestError if it is of another version, comes twice or does not fit."""
        unit = snapshot.unit
        if unit not in self._model.units or unit in self._units or snapshot.version != self.version:
            raise BadRequestError(
                f"a checkpoint of version {self.version} takes each of {counted(len(self._model.units), 'unit')} once, got {unit} "
                f"at version {snapshot.version}"
            )
        assert isinstance(unit, TrainedUnit)
        with self._working, self._abandoned_if_it_fails():
            weights = stored_tensors(self._config, unit, snapshot.kind(PARAMETER))
            state = {name: tensor for name, tensor in snapshot.tensors.items() if not name.startswith(f"{PARAMETER}/")}
            for name, tensors in ((weights_file(unit), weights), (state_file(unit), state)):
                with self._disk():
                    write_tensors(self._path / name, tensors)
                    self._seal(name)
            self._index |= dict.fromkeys(weights, weights_file(unit))
            self._num_bytes += sum(tensor.nbytes for tensor in weights.values())
            self._units[unit] = UnitFacts(chain=snapshot.chain, digest=snapshot.digest)
        faults.point("checkpoint_unit", len(self._units))

    def publish(self, best: int | None = None) -> Path:
        """The checkpoint's place: it counts from now on. Older ones that are not kept are removed (best: a version to keep).

        BadRequestError if a unit is missing.
        """
        missing = [unit for unit in self._model.units if unit not in self._units]
        if missing:
            raise BadRequestError(
                f"the checkpoint of version {self.version} lacks {counted(len(missing), 'unit')}, first {missing[0]}"
            )
        with self._working, self._abandoned_if_it_fails():
            index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(self._index.items()))}
            self._write(INDEX, json.dumps(index, indent=2).encode())
            found = Contents(
                run=self._model.run, spec=self._model.spec, version=self.version, units=self._units, files=dict(self._files)
            )
            faults.point("checkpoint_list", self.version)
            with self._disk():
                files.replace(self._path / contents.LIST, found.encode())
                for folder in {self._path / name for name in (".", *(str(Path(name).parent) for name in self._files))}:
                    files.sync(folder)
                faults.point("checkpoint_rename", self.version)
                path = self._folder.publish(self._path, self.version)
            self._release()
        faults.point("checkpoint_published", self.version)
        self._folder.prune(best)
        return path

    def abandon(self) -> None:
        """Remove what was written; harmless after `publish`. From any thread."""
        with self._working:
            if self._lock >= 0:
                shutil.rmtree(self._path, ignore_errors=True)
                self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _write(self, name: str, content: bytes) -> None:
        with self._disk():
            (self._path / name).parent.mkdir(exist_ok=True)
            (self._path / name).write_bytes(content)
            self._seal(name)

    def _seal(self, name: str) -> None:
        """Durable, and in the list."""
        files.sync(self._path / name)
        self._files[name] = facts_of(self._path / name)

    @contextlib.contextmanager
    def _abandoned_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = self._folder.directory
            if files.is_full(error):
                raise DiskFullError(
                    f"the disk became full while the checkpoint of version {self.version} was written at {place}; older ones stay "
                    "good and training goes on: free some space before the next one"
                ) from error
            raise CheckpointError(f"cannot write the checkpoint of version {self.version} at {place}: {error}") from error


def in_float32(config: Any) -> dict[str, Any]:
    """The config of a model whose weights are stored in float32, also if those of version 0 were not."""
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    texts = {key: in_float32(value) for key, value in kept.items() if key == "text_config" and isinstance(value, dict)}
    return {**kept, **texts, "dtype": "float32"}
