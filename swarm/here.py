"""Where this machine's own nodes are reached, for invitations that are made on it: one small file a running node."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocols.errors import ConfigError
from protocols.ids import PeerId
from swarm.dht.address import PeerAddress

_MAX_FILES = 64
_MAX_BYTES = 4_096


def _folder(data_dir: Path) -> Path:
    return data_dir / "swarms"


def _stem(known_as: str) -> str:
    return hashlib.sha256(known_as.encode()).hexdigest()[:16]


@contextlib.contextmanager
def told(data_dir: Path, known_as: str, peer: PeerId, addresses: Sequence[str]) -> Iterator[None]:
    """A node of the swarm `known_as` (`keyring.known_as`) runs here while this lasts. If it cannot be written, people name addresses."""
    path = _folder(data_dir) / f"{_stem(known_as)}.{peer[-8:]}.here"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text("".join(f"{address}\n" for address in addresses))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def nodes(data_dir: Path, known_as: str) -> list[PeerAddress]:
    """Addresses of the nodes that run here, each node's most public one first."""
    found: list[PeerAddress] = []
    for path in sorted(_folder(data_dir).glob(f"{_stem(known_as)}.*.here"))[:_MAX_FILES]:
        with contextlib.suppress(OSError, ValueError, ConfigError):
            found += map(PeerAddress.parse, path.read_text()[:_MAX_BYTES].split())
    return found
