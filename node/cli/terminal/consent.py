"""Asks once per network before unnamed peers are joined.

Peers that the user did not name are printed before they are joined.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from node.cli.terminal.status_line import LINE
from node.config import DEFAULT_SWARM
from protocols.words import one_line
from swarm.lan import network

QUESTION = "join? Do not trust them unless you know who runs them; --swarm NAME makes a swarm of your own [y/N] "
MAX_FILE_BYTES = 64 << 10


def asker(data_dir: Path, swarm: str) -> Callable[[str], bool] | None:
    """What asks the user whether neighbours may be joined; None if they may: there is no terminal, the user named this swarm by
    --swarm, or has said yes on this network before."""
    if swarm != DEFAULT_SWARM or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    file = data_dir / "peers" / "networks.txt"
    here = network.name()
    if here and here in _agreed(file):
        return None

    def ask(heard: str) -> bool:
        if not _said_yes(f"{heard}; {QUESTION}"):
            return False
        if here:
            _remember(file, here)
        return True

    return ask


def _said_yes(question: str) -> bool:
    with LINE.held():
        print(one_line(question), end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _agreed(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES).decode(errors="replace").split()
    except OSError:
        return []


def _remember(file: Path, here: str) -> None:
    """Best effort: if it cannot be written, the question comes again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.open("a") as opened:
            opened.write(f"{here}\n")
    except OSError:
        return
