"""Removes socket files that killed processes left in /tmp.

p2pd and hivemind make them; no process listens on them, so a start removes them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

DIRECTORY = Path("/tmp")  # fixed in hivemind
PATTERN = "hivemind-p2p*.sock"
_MIN_AGE_S = 10.0
"""Seconds: a socket file exists a moment before a process listens on it."""


def sweep(min_age_s: float = _MIN_AGE_S) -> int:
    """Remove socket files of this user that are older than `min_age_s` and on which no process listens. Returns how many."""
    return sum(_remove_if_dead(path, min_age_s) for path in DIRECTORY.glob(PATTERN))


def _remove_if_dead(path: Path, min_age_s: float) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_uid != os.getuid() or time.time() - found.st_mtime < min_age_s or not path.is_socket():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return True
    return False
