"""Which weights a name meant here before: trust on first use.

There is one small file for each swarm.

The file is a hint that this user's own processes write: {name: [digest, Unix time of its last use]}. If it cannot be read or written,
nothing is remembered, and the log says so.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm import files

log = logging.getLogger(__name__)

MAX_NAMES = 256
"""Names that are kept, those that were used last."""

MAX_FILE_BYTES = 1 << 20

_DIGEST = re.compile("[0-9a-f]{64}")

Known = Mapping[str, tuple[str, float]]
"""Digest and last use (Unix time) by name."""


def file_of(data_dir: Path, swarm: str) -> Path:
    """Where the names of a swarm are kept."""
    return data_dir / "names" / f"{files.stem_of(swarm)}.json"


def parse(data: bytes) -> dict[str, tuple[str, float]]:
    """What a file says; what is not of our form is left out."""
    try:
        table = json.loads(data)
    except ValueError:
        return {}
    found: dict[str, tuple[str, float]] = {}
    for name, entry in table.items() if isinstance(table, dict) else ():
        match entry:
            case [str(digest), int() | float() as used_s] if _DIGEST.fullmatch(digest):
                found[name] = digest, float(used_s)
    return found


def merged(known: Known, name: str, digest: str, now_s: float) -> dict[str, tuple[str, float]]:
    """What is known after a use; at most MAX_NAMES."""
    newest = sorted({**known, name: (digest, now_s)}.items(), key=lambda item: -item[1][1])
    return dict(newest[:MAX_NAMES])


def load(file: Path) -> dict[str, tuple[str, float]]:
    """The names in `file`; none if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return parse(opened.read(MAX_FILE_BYTES))
    except OSError as error:
        if file.exists():
            log.warning("which weights names meant before cannot be read from %s: %s", file, error.strerror)
        return {}


@dataclass(frozen=True, slots=True)
class NameMemory:
    """The names of one swarm; without a file nothing is remembered."""

    file: Path | None = None

    def digest_of(self, name: str) -> str | None:
        """The weights that `name` meant; None = it was never used here."""
        found = load(self.file).get(name) if self.file is not None else None
        return None if found is None else found[0]

    def keep(self, name: str, digest: str, now_s: float) -> None:
        """`name` means these weights from now on. One replacement: a reader sees the old file or the new one."""
        if self.file is None:
            return
        known = merged(load(self.file), name, digest, now_s)
        try:
            files.replace(self.file, json.dumps(known))
        except OSError as error:
            log.warning("which weights %r means cannot be kept in %s: %s", name[:80], self.file, error.strerror)
