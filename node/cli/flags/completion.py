"""Shell completion: the script for a shell, and the answer to Tab.

Both are typer's. A shell calls `swarm` again with `_SWARM_COMPLETE` set for each Tab, so nothing heavy may be imported here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer
import typer.main
from typer import completion as typers

from protocols.errors import SwarmError
from protocols.words import one_line

VARIABLE = "_SWARM_COMPLETE"
"""What a shell's script sets: the command then prints completions and does nothing else."""

Shell = Literal["bash", "zsh", "fish"]

MAX_NAMES = 64
"""Names of models that Tab offers."""


def script(shell: Shell) -> str:
    """What the shell must read once, as by `eval`."""
    text: str = typers.get_completion_script(prog_name="swarm", complete_var=VARIABLE, shell=shell)  # type: ignore[attr-defined]
    return text


def is_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Is this process started by a shell for a Tab?"""
    return bool(environment.get(VARIABLE))


def answer(app: typer.Typer) -> int:
    """Print what may stand at the cursor; the exit code. What goes wrong offers nothing: a message would stand in the middle of a line."""
    typers.completion_init()  # type: ignore[attr-defined]
    command: Any = typer.main.get_command(app)
    try:
        command(args=[], prog_name="swarm", complete_var=VARIABLE)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def names(incomplete: str) -> list[str]:
    """Names of models that were used on this machine and begin so; none if the data directory cannot be read."""
    found = list[str]()
    with contextlib.suppress(OSError, SwarmError):
        found = sorted({name for name in _known() if name.startswith(incomplete) and _is_plain(name)})
    return found[:MAX_NAMES]


def _is_plain(name: str) -> bool:
    """A peer may have made up the name: nothing that a shell would read as more than a word."""
    return re.fullmatch(r"[\w./@+-]+", name) is not None and one_line(name) == name


def _known() -> Iterator[str]:
    from swarm import places
    from swarm.checkpoints import conversions
    from swarm.weights import remembered

    folder = Path(os.environ.get("SWARM_DATA_DIR") or places.data_dir())
    yield from (row.name for row in conversions.listed(folder))
    for file in sorted((folder / "names").glob("*.json")):
        yield from remembered.load(file)
