"""Command lines in messages, complete, ready to run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError
from swarm import places

DEFAULT_SWARM = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand:
    """`swarm node …` for one swarm, as it is reached from here."""

    swarm: str = DEFAULT_SWARM

    peer: str = ""
    """Multiaddr of a peer to join by; none if peers are remembered in `data_dir`, or heard."""

    data_dir: Path | None = None
    """The data directory in use; None = the usual one."""

    directory: str = ""
    """Where the model's files are here; none = peers give them."""

    def text(self, name: str, *words: str) -> str:
        """The line that hosts the model which the swarm calls `name`. words: further flags."""
        line = ["swarm", "node", self.directory or name, *words]
        if self.directory and places.name_in_swarm(self.directory) != name:
            line += ["--model-name", name]
        line += ["--swarm", self.swarm] if self.swarm != DEFAULT_SWARM else []
        line += ["--peer", self.peer] if self.peer else []
        is_reached = self.peer and self.swarm == DEFAULT_SWARM  # another swarm's key may be kept in the data directory
        return shlex.join([*line, *_data_dir_flag(None if is_reached else self.data_dir)])


USUAL = NodeCommand()
"""For the default swarm, by remembered peers or neighbours."""


def invite_command(swarm: str, data_dir: Path | None) -> str:
    """`swarm invite …` for a swarm whose key is kept below `data_dir`."""
    name = ["--swarm", swarm] if swarm != DEFAULT_SWARM else []
    return shlex.join(["swarm", "invite", *name, *_data_dir_flag(data_dir)])


def cache_command(data_dir: Path, *words: str) -> str:
    """`swarm cache …` for the fetched weights below `data_dir`."""
    return shlex.join(["swarm", "cache", *words, *_data_dir_flag(data_dir)])


def _data_dir_flag(data_dir: Path | None) -> list[str]:
    try:
        is_usual = data_dir is None or data_dir == places.data_dir()
    except ConfigError:  # there is no usual one
        is_usual = False
    return [] if is_usual else ["--data-dir", str(data_dir)]
