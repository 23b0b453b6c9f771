"""Small files, each replaced as a whole, and full disks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)


def stem_of(swarm: str) -> str:
    """What the files of a swarm are called. Its name may hold any letter, so they are called by its hash."""
    return hashlib.sha256(swarm.encode()).hexdigest()[:16]


def is_full(error: BaseException) -> bool:
    """Does it say that the disk, or the user's quota, is full? Rust's libraries say so in words only."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def on_disk(path: Path) -> int:
    """Bytes that it takes of the disk; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, max_bytes: int) -> bytes:
    """All of a file. OSError; ValueError if it has more than `max_bytes`, of which no more is read."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return data


def replace(path: Path, content: str | bytes) -> None:
    """Write a file (mode 0600), with its folder: a reader sees the old one or the new one. OSError leaves the old one, and no other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())  # else a power cut may leave an empty file under the new name
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
