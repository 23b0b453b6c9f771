"""What makes a peer the same peer after a restart: its identity file, locked while in use, and its TLS key and certificate beside it.

Two processes with one identity would be two peers with one name, so the file is held by `flock`, which ends with the process. The
default file is not fixed: where it is taken, the next numbered one is used, so a second node on one machine just works.
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
from swarm.rpc import tls
from swarm.rpc.tls import TlsCertificate

MAX_NUMBER = 1_000
DEFAULT_NAME = "identity.key"
"""In the data directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A peer's identity and, where it serves, its certificate."""

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
    """A new identity that nobody keeps, for clients."""
    return Keys(identity=from_seed(os.urandom(32)), certificate=None, path=None)


@contextlib.contextmanager
def shared(path: Path) -> Iterator[Keys]:
    """The identity in `path` for a client, made if there is none. Several clients may use it at once; a node with it may not run."""
    descriptor = _open(path, fcntl.LOCK_SH)
    if descriptor is None:
        raise ConfigError(f"the identity {path} is in use by a node; name another file with --identity, a client makes it")
    try:
        yield Keys(identity=_read_or_make(path, descriptor), certificate=None, path=path)
    finally:
        os.close(descriptor)


def of_client(path: Path | None) -> contextlib.AbstractContextManager[Keys]:
    """A client's identity: the one in `path`, or a fresh one."""
    return shared(path) if path else contextlib.nullcontext(fresh())


def peer_id(path: Path) -> PeerId:
    """The PeerID of the identity in `path`, which is made if there is none; also while a node uses it."""
    with contextlib.suppress(FileNotFoundError):
        try:
            data = path.read_bytes()[:4_096]
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ConfigError(f"the identity {path} cannot be read: {error.strerror}") from None
        if data:
            try:
                return parse_private(data).peer_id
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
    with shared(path) as made:
        return made.identity.peer_id


@contextlib.contextmanager
def held(path: Path | None, data_dir: Path, swarm_key: SwarmKey | None = None) -> Iterator[Keys]:
    """The keys in `path`, made where it does not exist, and locked while this lasts.

    swarm_key: of a private swarm, which the certificate then proves.

    Without a path: the first free one of data_dir/identity.key, identity-2.key, … ConfigError where a named file is in use
    by another process, unreadable, or no identity.
    """
    chosen, descriptor = _lock(path) if path else _lock_default(data_dir)
    try:
        identity = _read_or_make(chosen, descriptor)
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
    """An open and locked descriptor; None where another process holds the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the identity {path} cannot be opened: {error.strerror}; name another file with --identity, or another folder with --data-dir"
        ) from None
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read_or_make(path: Path, descriptor: int) -> Identity:
    data = os.pread(descriptor, 4_096, 0)
    if data:
        try:
            return parse_private(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    identity = from_seed(os.urandom(32))
    os.pwrite(descriptor, identity.private_bytes, 0)
    os.fsync(descriptor)
    return identity


def _certificate(identity: Identity, path: Path, swarm_key: SwarmKey | None) -> TlsCertificate:
    """The certificate of last time, so that those who pinned it still know us; a new one where there is none, or it is not ours, or
    of another swarm."""
    with contextlib.suppress(OSError, UnauthenticatedError):
        kept = tls.parse(path.read_bytes())
        if tls.member(kept.der, swarm_key) == identity.peer_id:
            return kept
    made = tls.make(identity, swarm_key)
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made.key_pem + made.cert_pem)
    partial.replace(path)
    return made
