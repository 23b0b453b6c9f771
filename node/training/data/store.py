"""The tokens of one source on disk: verified at each opening.

A folder of arrays (`tokens`, `ends`, `byte_lengths`, and `targets` of conversations) and `meta.json` with the SHA-256 of each. It is
written under another name and renamed when all is on the disk, so a process that is killed leaves nothing that could be taken for whole.
One process at a time opens or writes a folder, by a lock that the kernel takes from a process that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.training.data.encoder import EncodedItems
from node.training.data.token_data import FORMAT, TokenSource
from protocols.errors import DeadlineError, DiskFullError
from swarm import files
from swarm.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

STALLED_S = 600.0
"""How long another process may hold the lock without writing."""

_POLL_S = 0.2
_TYPES = {"ends": "<i8", "targets": "u1", "byte_lengths": "<u4"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """One source, mapped into memory."""

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    targets: NDArray[np.uint8] | None
    byte_lengths: NDArray[np.uint32]
    pad_id: int
    highest_id: int
    digest: str

    def source(self, weight: Fraction | None) -> TokenSource:
        return TokenSource(tokens=self.tokens, ends=self.ends, targets=self.targets, weight=weight, digest=self.digest)


def load(folder: Path) -> Stored | None:
    """What is stored there; None if there is nothing, or if a byte of it is wrong, which is logged."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        digests: dict[str, str] = meta["digests"]
        types = {**_TYPES, "tokens": meta["type"]}
        for name, digest in digests.items():
            if _sha256(folder / name) != digest:
                raise ValueError(f"{name} has other bytes than were written")
        arrays = {name: _mapped(folder / name, types[name]) for name in digests}
        return Stored(
            tokens=arrays["tokens"],
            ends=arrays["ends"],
            targets=arrays.get("targets"),
            byte_lengths=arrays["byte_lengths"],
            pad_id=meta["pad_id"],
            highest_id=meta["highest_id"],
            digest=_digest(digests, meta["type"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("stored tokens %s are damaged (%s): they are made anew", folder, error)
        return None


class Writer:
    """Writes one folder. A context manager: unless `publish` was called, nothing is left at its end."""

    def __init__(self, folder: Path, byte_lengths: list[int], pad_id: int) -> None:
        """Whatever is at `folder` is removed by `publish`. The caller holds the lock."""
        self._folder, self._partial = folder, partial_of(folder)
        self._meta: dict[str, Any] = {"format": FORMAT, "pad_id": pad_id, "highest_id": 0}
        self._meta["type"] = "<u2" if len(byte_lengths) <= 1 << 16 else "<u4"
        self._byte_lengths, self._stack = byte_lengths, contextlib.ExitStack()
        self.num_tokens = 0

    def __enter__(self) -> Writer:
        shutil.rmtree(self._partial, ignore_errors=True)  # of a process that was killed
        with _disk_of(self._partial):
            self._partial.mkdir(parents=True)
            (self._partial / "byte_lengths").write_bytes(np.array(self._byte_lengths, "<u4").tobytes())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, items: EncodedItems) -> None:
        """DiskFullError."""
        with _disk_of(self._partial):
            self._write("tokens", items.tokens.astype(self._meta["type"]))
            self._write("ends", (items.ends + self.num_tokens).astype("<i8"))
            if items.targets is not None:
                self._write("targets", items.targets)
        self.num_tokens += len(items.tokens)
        self._meta["highest_id"] = max(self._meta["highest_id"], int(items.tokens.max(initial=0)))

    def _write(self, name: str, values: NDArray[Any]) -> None:
        with (self._partial / name).open("ab") as opened:
            opened.write(values.tobytes())

    def publish(self) -> None:
        """Make it the folder's content, at once and for good. DiskFullError."""
        with _disk_of(self._partial):
            names = sorted(path.name for path in self._partial.iterdir())
            self._meta["digests"] = {name: _sha256(self._partial / name) for name in names}
            (self._partial / "meta.json").write_text(json.dumps(self._meta))
            for path in (*self._partial.iterdir(), self._partial):
                files.sync(path)
            shutil.rmtree(self._folder, ignore_errors=True)
            os.rename(self._partial, self._folder)
            files.sync(self._folder.parent)


def partial_of(folder: Path) -> Path:
    """Where a folder is written."""
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def locked(folder: Path, clock: Clock = SYSTEM) -> Iterator[None]:
    """Hold the lock of a folder; wait while another process writes it. DeadlineError if that one stops writing for STALLED_S."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait(held, partial_of(folder), clock)
        yield
    finally:
        os.close(held)


def _wait(held: int, partial: Path, clock: Clock) -> None:
    size, since_s = -1, clock.now_s()
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (now := _size(partial)) != size:
            size, since_s = now, clock.now_s()
        if clock.now_s() - since_s > STALLED_S:
            raise DeadlineError(
                f"another process holds the tokens {partial.stem} and has written nothing for {STALLED_S:.0f} s: end it, or wait"
            )
        time.sleep(_POLL_S)


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


@contextlib.contextmanager
def _disk_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if files.is_full(error):
            raise DiskFullError(
                f"the disk of {folder.parent} is full, tokens take about half the bytes of their text: free some space, or choose another "
                "--data-dir"
            ) from None
        raise


def _digest(digests: dict[str, str], kind: str) -> str:
    """Over what is trained on: not over `byte_lengths`, which are only for show."""
    said = [kind, *(digests.get(name, "") for name in ("tokens", "ends", "targets"))]
    return hashlib.sha256("/".join(said).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r")
