"""Paths on this machine: our files, and what a user names.

Also for a user without a home directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from protocols.errors import ConfigError

NAME = "murmuration"


def home(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The home directory; None for a user who has none, as one of a container that is in no list of users."""
    if environment.get("HOME"):
        return Path(environment["HOME"])
    try:
        return Path.home()
    except RuntimeError:
        return None


def data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_DATA_HOME/murmuration`, or `~/.local/share/murmuration`: keys, digests and fetched weights of nodes and clients.

    ConfigError if there is neither.
    """
    if environment.get("XDG_DATA_HOME"):
        return Path(environment["XDG_DATA_HOME"]) / NAME
    own = home(environment)
    if own is None:
        raise ConfigError(
            f"there is no place for keys and fetched files: HOME is not set, and user {os.getuid()} has no home directory; "
            "give --data-dir (in Python: cache_dir), or set HOME or XDG_DATA_HOME"
        )
    return own / ".local" / "share" / NAME


def config_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """`$XDG_CONFIG_HOME/murmuration/config.toml`, or `~/.config/murmuration/config.toml`; None if there is neither directory."""
    own = home(environment)
    base = Path(environment["XDG_CONFIG_HOME"]) if environment.get("XDG_CONFIG_HOME") else own / ".config" if own else None
    return base / NAME / "config.toml" if base else None


def expanded(path: str | Path) -> Path:
    """`path` with `~` replaced by the home directory; as it is if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


_MODEL_FILES = ("config.json", "*.gguf", "checkpoint-*/config.json")
"""A folder with one of these holds a model, or a run's checkpoints."""


def is_place(model: str) -> bool:
    """True if `model` is meant as a place on this disk: what is written as a path, or exists. A folder that holds no model may be called
    as one of the swarm is: only as a path it is meant."""
    place = expanded(model)
    is_path = "/" in model or model.startswith((".", "~"))
    if place.is_dir() and not is_path:
        return any(next(place.glob(pattern), None) for pattern in _MODEL_FILES)
    return place.exists() or model.startswith((".", "/", "~"))


def name_in_swarm(model: str) -> str:
    """What peers call `model`: a directory by the last part of its real path (links followed, `.` resolved), a GGUF file by its name
    without `.gguf`, the Hub's by their name."""
    place = expanded(model)
    if place.is_dir():
        return place.resolve().name
    return place.stem if place.suffix.lower() == ".gguf" and place.is_file() else model
