"""The folder of a run's checkpoints: which are whole, which are kept.

    runs/NAME/checkpoint-120/               whole: published by one rename, after every file was durable and hashed
    runs/NAME/.checkpoint-160.PID.N/        being written; locked by its writer. Its process has died if the lock is free: removed
    runs/NAME/.removed-checkpoint-80.PID.N/ being removed

Kept are the newest `keep` checkpoints, and the one of the best version if the caller names it (the run's evaluation knows it).
All here is blocking.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from node.training.checkpoint import contents
from node.training.checkpoint.stored import StoredCheckpoint
from protocols.errors import CheckpointError
from protocols.ids import ModelId
from protocols.runs import RunSpec
from swarm import files

log = logging.getLogger(__name__)

KEEP = 3
_WHOLE = re.compile(r"checkpoint-(0|[1-9][0-9]{0,12})")
_UNFINISHED, _REMOVED = ".checkpoint-", ".removed-"
_NUMBERS = itertools.count()


class CheckpointFolder:
    """The checkpoints of one run, in one folder. Several processes may use it at once."""

    def __init__(self, directory: Path, keep: int = KEEP) -> None:
        assert keep >= 1
        self.directory, self._keep = directory, keep

    def path(self, version: int) -> Path:
        return self.directory / f"checkpoint-{version}"

    def versions(self) -> list[int]:
        """Versions that were published, the newest first; whether they are still whole is not looked at."""
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        return sorted((int(match[1]) for name in names if (match := _WHOLE.fullmatch(name))), reverse=True)

    def newest(self, run: ModelId, spec: RunSpec, below: int | None = None) -> StoredCheckpoint | None:
        """The newest whole checkpoint (of a version below this one): its list is there, and every file has its size.

        Hashes are compared when a unit is loaded. Damaged ones are passed over, with a line in the log. ModelMismatchError, with the
        first field that differs, if it is of another run or model.
        """
        for version in self.versions():
            if below is not None and version >= below:
                continue
            try:
                found = StoredCheckpoint.open(self.path(version))
            except CheckpointError as error:
                log.warning("checkpoint of version %d is passed over: %s", version, error)
                continue
            found.contents.check(run, spec)
            return found
        return None

    def begin(self, version: int) -> tuple[Path, int]:
        """A new empty folder to write a checkpoint into, and the descriptor that locks it until it is closed."""
        while True:
            path = self.directory / f"{_UNFINISHED}{version}.{os.getpid()}.{next(_NUMBERS)}"
            path.mkdir(parents=True)
            held = -1
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process took it for left behind
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (path / contents.TRAINING).mkdir()
                return path, held
            if held >= 0:
                os.close(held)

    def publish(self, unfinished: Path, version: int) -> Path:
        """Give a finished folder its name: from now on it counts. A checkpoint of that version that is there already is replaced."""
        path = self.path(version)
        while True:
            try:
                unfinished.rename(path)
                break
            except OSError:
                if not path.is_dir():
                    raise
                self._put_aside(path)
        files.sync(self.directory)
        return path

    def clean(self) -> None:
        """Remove what processes that died have left unfinished."""
        for path in (*self.directory.glob(f"{_UNFINISHED}*"), *self.directory.glob(f"{_REMOVED}*")):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process removes it too, or writes it
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(held)

    def prune(self, best: int | None = None) -> list[int]:
        """Remove the checkpoints that are not kept; their versions."""
        gone = surplus(self.versions(), self._keep, best)
        for version in gone:
            self._put_aside(self.path(version))
        return gone

    def _put_aside(self, path: Path) -> None:
        """Renamed first: a removal that is cut short must leave nothing that looks like a checkpoint."""
        aside = path.with_name(f"{_REMOVED}{path.name}.{os.getpid()}.{next(_NUMBERS)}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def surplus(versions: Iterable[int], keep: int, best: int | None = None) -> list[int]:
    """The versions to remove: all but the newest `keep`, and but `best`."""
    return [version for version in sorted(versions, reverse=True)[keep:] if version != best]


def facts_of(path: Path) -> contents.FileFacts:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return contents.FileFacts(num_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
