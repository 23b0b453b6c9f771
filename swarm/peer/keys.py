"""A peer's identity file, locked while in use, and its TLS certificate.

A node holds the file alone, by `flock`, which ends with the process: two nodes of one identity would be two peers of one name. Clients
may share one, since no peer calls them. The default file is not fixed: if it is taken, the next numbered one is used, so a second node on
one machine just works.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError, UnauthenticatedError
from protocols.identity import Identity, from_seed, parse_private
from protocols.ids import PeerId
from protocols.swarm_key import SwarmKey
from swarm import files
from swarm.rpc import tls
from swarm.rpc.tls import TlsCertificate

MAX_NUMBER = 1_000
DEFAULT_NAME = "identity.key"
"""In the data directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A peer's identity and, if it serves, its certificate."""

    identity: Identity
    certificate: TlsCertificate | None
    path: Path | None
    """Where the identity stays; None = in memory only."""

    @contextlib.contextmanager
    def file(self) -> Iterator[str]:
        """A path where p2pd can read the identity, for as long as this lasts."""
        if self.path:
            yield str(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="murmuration-") as folder:
            path = Path(folder) / "identity.key"
            path.touch(mode=0o600)
            path.write_bytes(self.identity.private_bytes)
            yield str(path)


def fresh() -> Keys:
    """A new identity that is not stored, for clients."""
    return Keys(identity=from_seed(os.urandom(32)), certificate=None, path=None)


@contextlib.contextmanager
def shared(path: Path) -> Iterator[Keys]:
    """The identity in `path` for a client, made if there is none. Several clients may use it at once; a node with it may not run."""
    descriptor = _open(path, fcntl.LOCK_SH)
    if descriptor is None:
        raise ConfigError(f"the identity {path} is in use by a node; name another file with --identity, a client makes it")
    try:
        yield Keys(identity=_read(path, descriptor), certificate=None, path=path)
    finally:
        os.close(descriptor)


def of_client(path: Path | None) -> contextlib.AbstractContextManager[Keys]:
    """A client's identity: the one in `path`, or a fresh one."""
    return shared(path) if path else contextlib.nullcontext(fresh())


def peer_id(path: Path) -> PeerId:
    """The PeerID of the identity in `path`, which is made if there is none; also while a node uses it."""
    descriptor = _opened(path)
    try:
        return _read(path, descriptor).peer_id
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path | None, data_dir: Path, swarm_key: SwarmKey | None = None) -> Iterator[Keys]:
    """The keys in `path`, made if it does not exist, and locked while this lasts.

    swarm_key: of a private swarm, which the certificate then proves.

    Without a path: the first free one of data_dir/identity.key, identity-2.key, … ConfigError if a named file is in use
    by another process, unreadable, or no identity.
    """
    chosen, descriptor = _lock(path) if path else _lock_default(data_dir)
    try:
        identity = _read(chosen, descriptor)
        yield Keys(identity=identity, certificate=_certificate(identity, chosen.with_suffix(".tls.pem"), swarm_key), path=chosen)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> tuple[Path, int]:
    descriptor = _open(path)
    if descriptor is None:
        raise ConfigError(
            f"the identity {path} is in use by another process; name another with --identity, or none for a numbered one"
        )
    return path, descriptor


def _lock_default(data_dir: Path) -> tuple[Path, int]:
    for number in range(1, MAX_NUMBER):
        path = data_dir / (DEFAULT_NAME if number == 1 else f"identity-{number}.key")
        descriptor = _open(path)
        if descriptor is not None:
            return path, descriptor
    raise ConfigError(f"{MAX_NUMBER} identities in {data_dir} are in use; name another folder with --data-dir")


def _open(path: Path, lock: int = fcntl.LOCK_EX) -> int | None:
    """An open and locked descriptor; None if another process holds the lock."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _opened(path: Path) -> int:
    try:
        if not _is_there(path):
            _make(path)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"the identity {path} cannot be opened: {error.strerror}; name another file with --identity, or another folder with --data-dir"
        ) from None


def _is_there(path: Path) -> bool:
    return path.exists() and not (path.is_file() and path.stat().st_size == 0)  # an empty file may become one, a device never


def _make(path: Path) -> None:
    """A new identity in `path`. Of several processes that would make one, the first does, and the others find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # held for the moment of writing only
        if not _is_there(path):
            files.replace(path, from_seed(os.urandom(32)).private_bytes)
    finally:
        os.close(folder)


def _read(path: Path, descriptor: int) -> Identity:
    try:
        return parse_private(os.pread(descriptor, 4_096, 0))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _certificate(identity: Identity, path: Path, swarm_key: SwarmKey | None) -> TlsCertificate:
    """The certificate of last time, so that those who pinned it still know us; a new one if there is none, or it is not ours, or
    of another swarm."""
    with contextlib.suppress(OSError, UnauthenticatedError):
        kept = tls.parse(path.read_bytes())
        if tls.member(kept.der, swarm_key) == identity.peer_id:
            return kept
    made = tls.make(identity, swarm_key)
    files.replace(path, made.key_pem + made.cert_pem)
    return made
