"""The lock of a folder in a cache: shared by its users.

Processes that use the folder hold the lock, so that none removes it meanwhile. The kernel lets go of it when they end. The file's time
is the last use. All here is blocking.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def hold(lock: Path) -> int:
    """Note a use, and hold the lock until the returned descriptor is closed; waits while a process removes the folder."""
    held = _open(lock)
    fcntl.flock(held, fcntl.LOCK_SH)
    os.utime(held)
    return held


@contextlib.contextmanager
def unused(lock: Path) -> Iterator[bool]:
    """Does no process use the folder? If so, none begins to during the block."""
    held = _open(lock)
    try:
        yield _is_ours(held)
    finally:
        os.close(held)


def _is_ours(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_used(lock: Path) -> bool:
    """Does a process hold it? This question does not count as a use."""
    if not lock.exists():
        return False
    with unused(lock) as is_free:
        return not is_free


def last_use_s(lock: Path) -> float:
    """Unix time; 0 if there was none."""
    with contextlib.suppress(OSError):
        return lock.stat().st_mtime
    return 0.0


def _open(lock: Path) -> int:
    return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
