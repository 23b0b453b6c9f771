"""Keys of private swarms: one file each, readable by its user only.

The file holds an invitation without addresses and expiry, so it is read by the same code.
"""

from __future__ import annotations

import os
from pathlib import Path

from protocols.errors import ConfigError
from protocols.swarm_key import KEY_BYTES, SwarmKey
from swarm import files
from swarm.meeting import invitation
from swarm.meeting.invitation import Invitation


def known_as(swarm: str, key: SwarmKey | None) -> str:
    """The name of a swarm in our files: a public and a private swarm may have the same name."""
    return swarm if key is None else f"{swarm}\0{key.label}"


def file_of(data_dir: Path, swarm: str) -> Path:
    """Where the key of a swarm is kept."""
    return data_dir / "swarms" / f"{files.stem_of(swarm)}.key"


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
        raise ConfigError(
            f"the key of swarm `{swarm}` in {path} is damaged; remove it, and join again by an invitation (--join)"
        ) from None
    return found.key if found.swarm == swarm else None


def keep(data_dir: Path, swarm: str, key: SwarmKey) -> Path:
    """Write the key down (mode 0600), in one replacement. ConfigError if that cannot be done."""
    path = file_of(data_dir, swarm)
    try:
        files.replace(path, Invitation(swarm=swarm, key=key).text() + "\n")
    except OSError as error:
        raise ConfigError(
            f"the key of swarm `{swarm}` cannot be kept in {path}: {error.strerror}; name another folder with --data-dir"
        ) from None
    return path


def made() -> SwarmKey:
    """A new key."""
    return SwarmKey(os.urandom(KEY_BYTES))
