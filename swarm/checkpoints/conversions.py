"""Checkpoints that were converted from GGUF files, in our cache.

    converted/KEY/NAME          the checkpoint; NAME is what a swarm calls the model
    converted/KEY/source.json   which file it was made of
    converted/KEY.lock          `swarm.use_lock`
    converted/.unfinished-…     a conversion that is being made or removed

KEY stands for the file's path, size and time, and for NAME if that is not the directory's: a file that was changed is converted anew
(`gguf.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from swarm import files, use_lock

SOURCE = "source.json"
PARTIAL = ".unfinished-"
"""Prefix of a folder that is being made or removed; the next conversion removes it if its process was killed."""

_FORMAT = 1
"""Part of the key: raise it if a file must be converted anew although it is the same."""

_KEY = "[0-9a-f]" * 32
_held: dict[Path, int] = {}
"""The locks of the conversions that this process uses. They are held until it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One converted checkpoint, for people."""

    path: Path
    """The checkpoint's directory, `converted/KEY/NAME`."""
    source: str
    """The GGUF file, which may be gone; empty if that is unknown."""
    num_bytes: int
    last_used_s: float
    """Unix time."""
    is_in_use: bool
    """A running process uses it."""

    @property
    def name(self) -> str:
        """What a swarm calls the model."""
        return self.path.name

    @property
    def key(self) -> str:
        return self.path.parent.name


def place_of(file: Path, data_dir: Path, name: str | None = None) -> Path:
    """Where the checkpoint of a file is, if it was converted before. name: of the model; None = that of the file's directory."""
    stat = file.stat()
    stamp = json.dumps([_FORMAT, str(file), stat.st_size, stat.st_mtime_ns, *([] if name is None else [name])])
    key = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return data_dir / "converted" / key / (name or file.parent.name)


def use(place: Path) -> bool:
    """Is the checkpoint there? If so, it is not removed before this process ends."""
    if place not in _held and place.is_dir():
        with contextlib.suppress(OSError):  # a cache that cannot be written to cannot be pruned either
            _held[place] = use_lock.hold(_lock(place))
    return place.is_dir()


def listed(data_dir: Path) -> list[Conversion]:
    """What was converted, the one used last first."""
    found = [_described(path) for path in (data_dir / "converted").glob(f"{_KEY}/*") if path.is_dir()]
    return sorted(found, key=lambda one: -one.last_used_s)


def remove(conversion: Conversion) -> bool:
    """Delete it, not its source; False if a running process uses it. OSError if files remain.

    It is renamed first, so a conversion that is removed only in part is never used; the next conversion removes the rest.
    """
    folder = conversion.path.parent
    with use_lock.unused(_lock(conversion.path)) as is_free:
        if is_free:
            doomed = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PARTIAL))
            folder.rename(doomed)  # takes the place of the empty folder, if that is still there
            shutil.rmtree(doomed, ignore_errors=True)  # a conversion that begins now deletes the same files
            if doomed.exists():
                shutil.rmtree(doomed)  # raises what stands in the way
    return is_free


def _lock(place: Path) -> Path:
    return place.parent.with_suffix(".lock")


def _described(path: Path) -> Conversion:
    source = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        source = str(json.loads((path.parent / SOURCE).read_bytes())["file"])
    lock = _lock(path)
    return Conversion(
        path=path,
        source=source,
        num_bytes=sum(files.on_disk(file) for file in path.rglob("*") if file.is_file()),
        last_used_s=use_lock.last_use_s(lock) or path.stat().st_mtime,
        is_in_use=use_lock.is_used(lock),
    )
