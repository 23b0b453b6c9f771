"""GGUF files, converted once to checkpoints in our cache.

transformers' own loader does the work, in a process of its own (`gguf_main.py`): its memory is given back at the end, and it ends with
us. transformers changes torch's default dtype while it loads; in another process this cannot affect our forwards. The result is made
beside its place (`conversions.py`) and renamed as a whole, under a lock, so that what is there is complete.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ConfigError, DiskFullError, from_wire
from swarm import files, helper_process, places, waiting
from swarm.checkpoints import conversions
from swarm.waiting import Waits

log = logging.getLogger(__name__)

NEEDED = ("gguf", "accelerate")
"""Packages that transformers' GGUF loader wants."""

HOW_TO_INSTALL = "in the checkout, run scripts/setup, or pip install '.[gguf]'"

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "USE_HUB_KERNELS": "0", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error",
                "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
"""Nothing is fetched, least of all kernels, which transformers would take from the Hub if the package `kernels` is there."""


SUFFIX = ".gguf"


def is_file(path: Path) -> bool:
    """A GGUF file, by its name."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def checkpoint_of(model: Path, data_dir: Path | None = None, waits: Waits | None = None) -> Path:
    """`model` itself; if it is a GGUF file, or a directory with one instead of safetensors, the checkpoint that this is converted to.

    data_dir: the cache is below it; None = the usual place. waits: told of the progress.
    Raises CheckpointError (two such files, or a damaged one), ModelNotSupportedError (transformers does not load it, or it cannot be
    served), ConfigError (packages are missing) and DiskFullError. A failure, and a process that is killed, leaves no checkpoint.
    """
    file = model if is_file(model) else find(model)
    if file is None:
        return model
    place = conversions.place_of(file, data_dir or places.data_dir(), model.stem if file == model else None)
    root = place.parent.parent
    if conversions.use(place):
        return place
    _check_installed(file)
    with _writing(root), _locked(root / "lock", file, waits or Waits()) as progress:
        if not place.is_dir():  # another process had the lock, and made it
            _convert(file, place, progress)
        conversions.use(place)
    return place


def find(directory: Path) -> Path | None:
    """The GGUF file of a directory that holds no safetensors; None = there is none. CheckpointError if there are several."""
    found = sorted(directory.glob("*.gguf"))
    if not found or any(directory.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3])
        raise CheckpointError(
            f"{directory} holds {len(found)} GGUF files ({names}{', …' if len(found) > 3 else ''}), and a model's directory holds one: "
            f"give the one that you want: {found[0]}"
        )
    return found[0]


def _check_installed(file: Path) -> None:
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"{file} must be converted, which needs {' and '.join(absent)}, not installed here: {HOW_TO_INSTALL}")


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Make the folder; what the disk refuses inside becomes one line."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except OSError as error:
        if files.is_full(error):
            raise DiskFullError(f"the disk of {root} is full; free some, or choose another --data-dir") from error
        raise ConfigError(
            f"cannot write to {error.filename or root}: {error.strerror or error}; choose another --data-dir"
        ) from error


@contextmanager
def _locked(lock: Path, file: Path, waits: Waits) -> Iterator[Callable[[int, int], None]]:
    """One conversion at a time. Gives what says how far this one is: (done, total)."""
    with lock.open("wb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with waits.on(waiting.converting(f"{file.name}, as soon as another process is done")):
                fcntl.flock(held, fcntl.LOCK_EX)
        with waits.on(waiting.converting(f"{file.name} to safetensors, which is done once")) as progress:
            yield progress


def _convert(file: Path, place: Path, progress: Callable[[int, int], None]) -> None:
    root = place.parent.parent
    # We have the lock, so no other conversion is running: what is here was left by a killed one, or is being removed.
    for stale in root.glob(f"{conversions.PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=root, prefix=conversions.PARTIAL))
    try:
        target = partial / place.name
        target.mkdir(exist_ok=True)
        _run(file, target, progress)
        source = json.dumps({"file": str(file)})
        (partial / conversions.SOURCE).write_bytes(source.encode("utf-8", "backslashreplace"))
        _keep(target)
        partial.rename(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("converted %s: the checkpoint is %s", file, place)


def _run(file: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Let the program convert; it ends with this call, however that ends."""
    last: dict[str, Any] = {}
    environment = {**os.environ, **_ENVIRONMENT}
    with helper_process.start("swarm.models.gguf_main", str(file), str(target), environment=environment) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                last = json.loads(line)
                if "total" in last:
                    progress(last["done"], last["total"])
        finally:
            process.kill()
    if last.get("code"):
        raise from_wire(last["code"], last["error"])
    if not last.get("is_whole"):
        raise CheckpointError(
            f"converting {file} was ended from outside, as by a kill or for want of memory (it takes as much as the "
            "checkpoint will have, and 0.5 GB); try again with more memory free, or use the model's safetensors checkpoint"
        )


def _keep(target: Path) -> None:
    """Flush all files before the rename, so that a power cut cannot leave a damaged checkpoint."""
    for path in [*target.rglob("*"), target]:
        files.sync(path)
