"""Addresses of the nodes that run with this data directory.

Invitations that are made here name them. Each node has one small file, and holds its lock while it runs: so a file whose lock is free is
of a node that was killed, and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocols.errors import ConfigError
from protocols.ids import PeerId
from swarm import files
from swarm.dht.address import PeerAddress

_MAX_FILES = 64
_MAX_BYTES = 4_096


@contextlib.contextmanager
def told(data_dir: Path, known_as: str, peer: PeerId, addresses: Sequence[str]) -> Iterator[None]:
    """Lists a running node of the swarm `known_as` (`keyring.known_as`) until the block ends.

    If the file cannot be written, the node runs without it, and `swarm invite` needs `--peer`.
    """
    path = data_dir / "swarms" / f"{files.stem_of(known_as)}.{peer[-8:]}.running"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.callback(_forget, path, _written(path, "".join(f"{address}\n" for address in addresses)))
        yield


def _written(path: Path, text: str) -> int:
    """The file, open and locked; it gets its name only then, so that no process finds it without its lock."""
    partial = path.with_suffix(".starting")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, text.encode())
        partial.replace(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _forget(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def nodes(data_dir: Path, known_as: str) -> list[PeerAddress]:
    """Addresses of the nodes that run here, each node's most public one first."""
    found: list[PeerAddress] = []
    for path in sorted((data_dir / "swarms").glob(f"{files.stem_of(known_as)}.*.running"))[:_MAX_FILES]:
        with contextlib.suppress(OSError, ValueError, ConfigError), path.open() as file:
            if _is_locked(file.fileno()):
                found += map(PeerAddress.parse, file.read(_MAX_BYTES).split())
            else:
                path.unlink()
    return found


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
