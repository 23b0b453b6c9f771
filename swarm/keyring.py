"""Keys of the private swarms that this machine is in: one file a swarm, readable by its user only.

The file holds an invitation without addresses and expiry, so it is read by the same code.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocols.errors import ConfigError
from protocols.swarm_key import KEY_BYTES, SwarmKey
from swarm import invitation
from swarm.invitation import Invitation

log = logging.getLogger(__name__)

DEFAULT_SWARM = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Which swarm a peer takes part in, and what it holds to get in."""

    swarm: str = DEFAULT_SWARM
    peers: tuple[str, ...] = ()
    key: SwarmKey | None = field(default=None)


def known_as(swarm: str, key: SwarmKey | None) -> str:
    """What files of ours about a swarm are called by: one name may stand for a public swarm and for private ones."""
    return swarm if key is None else f"{swarm}\0{key.label}"


def file_of(data_dir: Path, swarm: str) -> Path:
    """Where the key of a swarm is kept. A swarm's name may hold any letter, so the file is called by its hash."""
    return data_dir / "swarms" / f"{hashlib.sha256(swarm.encode()).hexdigest()[:16]}.key"


def kept(data_dir: Path, swarm: str) -> SwarmKey | None:
    """The key of `swarm` that is kept here; None = none. ConfigError if the file is there and cannot be used."""
    path = file_of(data_dir, swarm)
    try:
        text = path.read_text(encoding="utf-8")[: invitation.MAX_LETTERS]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key of swarm `{swarm}` in {path} cannot be read: {error}") from None
    try:
        found = Invitation.parse(text)
    except ConfigError:
        raise ConfigError(f"the key of swarm `{swarm}` in {path} is damaged; join again by an invitation (--join)") from None
    return found.key if found.swarm == swarm else None


def keep(data_dir: Path, swarm: str, key: SwarmKey) -> Path:
    """Write the key down (mode 0600), in one replacement. ConfigError if that cannot be done."""
    path = file_of(data_dir, swarm)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem)  # made with mode 0600
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(Invitation(swarm=swarm, key=key).text() + "\n")
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except OSError as error:
        raise ConfigError(
            f"the key of swarm `{swarm}` cannot be kept in {path}: {error.strerror}; name another folder with --data-dir"
        ) from None
    return path


def made() -> SwarmKey:
    """A new key."""
    return SwarmKey(os.urandom(KEY_BYTES))


def membership(join: str | None, swarm: str, peers: Sequence[str], data_dir: Path, now_s: float | None = None) -> Membership:
    """What `--join`, `--swarm` and `--peer` come to, with the keys that are kept here.

    A key that came by an invitation is kept, so the next start needs none; with it, the invitation may also have expired.
    ConfigError says what is wrong.
    """
    if join is None:
        return Membership(swarm=swarm, peers=tuple(peers), key=kept(data_dir, swarm))
    found = invitation.read(join)
    if swarm not in (DEFAULT_SWARM, found.swarm):
        raise ConfigError(f"the invitation is to swarm `{found.swarm}`, --swarm says `{swarm}`: leave --swarm out")
    before = kept(data_dir, found.swarm) if found.key else None
    if found.key is None or before != found.key:
        found.check_expiry(time.time() if now_s is None else now_s)
    if found.key is not None and before != found.key:
        if before is not None:
            log.warning("the invitation has another key of swarm `%s` than was kept here, and replaces it", found.swarm)
        keep(data_dir, found.swarm, found.key)
    return Membership(swarm=found.swarm, peers=tuple(dict.fromkeys((*peers, *found.peers))), key=found.key)
