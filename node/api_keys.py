"""Keys of those who may ask a gateway, kept hashed.

A key is 32 random bytes. So one SHA-256 is enough: 2**256 keys cannot be tried, while a slow hash, which protects passwords that people
choose, would cost every request its time. The file never holds a key itself, so it cannot be shown a second time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from protocols.errors import ConfigError
from swarm import files

FILE = "gateway_keys.json"
"""In the data directory."""

PREFIX = "mur_"
"""What every key begins with, so that scanners of source code find one that was published by mistake."""

MAX_KEYS = 1000
"""Keys of one file: each request is compared with all."""

MAX_REQUESTS, MAX_TOKENS = 10_000, 10**12
"""Largest budgets that a key may have: requests per minute, tokens per day."""

_MAX_BYTES = 1 << 20
_MAX_LETTERS = 200
"""Letters of a key that is read; ours have 47."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Stamp = tuple[int, int, int] | None
"""When a file was changed, its size and its inode; None = it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Who may ask, and how much. ConfigError if a value is out of its range."""

    name: str
    sha256: str
    """Of the key's letters, in hexadecimal."""

    made_unix_s: float
    requests_per_minute: int | None = None
    """None = as many as come."""

    tokens_per_day: int | None = None
    """Of prompts and answers together; None = as many as come."""

    is_operator: bool = False
    """May press the page's buttons, if the gateway has an operator's key."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(f"a key's name has 1 to 64 letters, digits and ._@-, got {str(self.name)[:80]!r}")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"key {self.name}: expected a SHA-256 of 64 hexadecimal digits, got {str(self.sha256)[:80]!r}")
        if type(self.made_unix_s) not in (int, float) or not 0 <= self.made_unix_s < 1e12:
            raise ConfigError(f"key {self.name}: expected a time in seconds since 1970, got {str(self.made_unix_s)[:80]!r}")
        for name, most in (("requests_per_minute", MAX_REQUESTS), ("tokens_per_day", MAX_TOKENS)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ConfigError(f"key {self.name}: {name} is from 1 to {most}, got {str(value)[:80]}")
        if type(self.is_operator) is not bool:
            raise ConfigError(f"key {self.name}: is_operator is true or false, got {str(self.is_operator)[:80]}")


def read(path: Path) -> tuple[Key, ...]:
    """The keys, none if there is no file. ConfigError if it cannot be used."""
    try:
        return _parsed(files.read(path, _MAX_BYTES))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(
            f"the keys in {path} cannot be read: {error.strerror}; choose another --data-dir, or mend its rights"
        ) from None
    except (ConfigError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"the keys in {path} are damaged ({error}); remove the file, and make new ones: swarm keys add NAME"
        ) from None


def _parsed(data: bytes) -> tuple[Key, ...]:
    listed = json.loads(data)["keys"]
    if not isinstance(listed, list) or len(listed) > MAX_KEYS or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"expected a list of at most {MAX_KEYS} keys")
    known = [field.name for field in fields(Key)]
    found = tuple(Key(**{name: one[name] for name in known if name in one}) for one in listed)
    if len({key.name for key in found}) < len(found):
        raise ValueError("a name is there twice")
    return found


def add(
    path: Path, name: str, now_s: float, *, requests_per_minute: int | None = None, tokens_per_day: int | None = None,
    is_operator: bool = False,
) -> str:  # fmt: skip
    """Make a key and return it: it is kept nowhere. ConfigError if the name is taken, or a value is out of its range."""
    secret = PREFIX + secrets.token_urlsafe(32)
    made = Key(
        name=name, sha256=hashed(secret), made_unix_s=round(now_s, 3), requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day, is_operator=is_operator,
    )  # fmt: skip
    with _locked(path):
        known = read(path)
        if any(key.name == name for key in known):
            raise ConfigError(f"there is a key {name} already; choose another name, or end that one: swarm keys revoke {name}")
        if len(known) >= MAX_KEYS:
            raise ConfigError(f"there are {len(known)} keys, as many as may be; end one: swarm keys revoke NAME")
        _write(path, [*known, made])
    return secret


def revoke(path: Path, name: str) -> None:
    """End a key. ConfigError if there is none of this name."""
    with _locked(path):
        known = read(path)
        left = [key for key in known if key.name != name]
        if len(left) == len(known):
            names = ", ".join(key.name for key in known[:20])
            raise ConfigError(f"no key {name[:80]!r}; {f'there is: {names}' if names else 'there are no keys'}")
        _write(path, left)


def _write(path: Path, keys: Sequence[Key]) -> None:
    try:
        files.replace(path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"the keys cannot be kept in {path}: {error.strerror}; name another folder with --data-dir") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other process changes the file meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the keys cannot be kept in {path}: {error.strerror}; name another folder with --data-dir") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hashed(secret: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def matching(keys: Sequence[Key], secret: str) -> Key | None:
    """The key that `secret` is. Takes the same time whichever it is, and whether it is one."""
    if len(secret) > _MAX_LETTERS:
        return None
    digest, found = hashed(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def stamp(path: Path) -> Stamp:
    """Differs after every change of the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
