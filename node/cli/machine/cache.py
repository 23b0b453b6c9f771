"""`swarm cache`: models on this disk, and how to remove them.

Weights that were fetched from peers, and checkpoints that were converted from GGUF files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import typer

from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from protocols.errors import ConfigError, ModelNotFoundError
from protocols.words import counted
from swarm import places
from swarm.checkpoints import conversions
from swarm.checkpoints.conversions import Conversion
from swarm.suggestion import cache_command
from swarm.weights import cache
from swarm.weights.cache import CachedModel
from swarm.weights.names import is_digest, split_name

DAY_S = 86_400.0


Row: TypeAlias = CachedModel | Conversion


def _root(data_dir: Path | None) -> Path:
    return (data_dir or places.data_dir()) / "weights"


def _rows(root: Path) -> list[Row]:
    """The one used last first."""
    return sorted([*cache.listed(root), *conversions.listed(root.parent)], key=lambda row: -row.last_used_s)


def show(data_dir: Path | None, *, is_json: bool) -> None:
    """All models, the one used last first."""
    root = _root(data_dir)
    rows = _rows(root)
    if is_json:
        models, converted = ([_facts(row) for row in rows if isinstance(row, kind)] for kind in (CachedModel, Conversion))
        as_json.show({"directory": root, "models": models, "conversions": converted})
        return
    if not rows:
        print(f"nothing was fetched or converted yet: no model in {root.parent}")
    for row in rows:
        print(_line(row, time.time()))


def _facts(row: Row) -> dict[str, object]:
    use = {"last_used": round(row.last_used_s, 3), "is_in_use": row.is_in_use}
    if isinstance(row, Conversion):
        return {"name": row.name, "path": str(row.path), "source": row.source, "bytes": row.num_bytes, **use}
    return {
        "name": row.model.name,
        "digest": row.model.digest,
        "bytes": row.num_bytes,
        "blocks": row.blocks_here,
        "num_blocks": row.num_blocks,
        "is_complete": row.is_complete,
        **use,
    }


def _title(row: Row) -> str:
    """What it is called: a name, and what tells it from others of that name."""
    if isinstance(row, Conversion):
        return f"{row.name} (converted from {row.source or 'a GGUF file'})"
    return f"{row.model.name}@{row.model.digest[:12]}"


def _line(row: Row, now_s: float) -> str:
    used = "in use" if row.is_in_use else f"used {_ago(now_s - row.last_used_s)} ago"
    return f"{_title(row)}  {row.num_bytes / 1e6:.1f} MB, {_how_much(row)}, {used}"


def _how_much(row: Row) -> str:
    if isinstance(row, Conversion) or row.is_complete:
        return "all of it"
    return f"{row.blocks_here} of {counted(row.num_blocks, 'block')}"


def _ago(seconds: float) -> str:
    for unit, length in (("day", DAY_S), ("hour", 3_600.0), ("minute", 60.0)):
        if seconds >= 2 * length:
            return counted(round(seconds / length), unit)
    return counted(max(0, round(seconds)), "second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """What to remove: exactly one of these."""

    name: str | None = None
    """NAME, NAME@DIGEST or the beginning of a digest."""
    older_than_days: float | None = None
    """Not used for so many days."""
    all: bool = False
    max_gb: float | None = None
    """As much, of what was used longest ago, as brings the cache to so many gigabytes."""

    def __post_init__(self) -> None:
        given = [self.name is not None, self.older_than_days is not None, self.all, self.max_gb is not None]
        if sum(given) != 1:
            raise ConfigError(f"say what to remove: one of MODEL, --older-than, --all and --max-gb, got {sum(given)} of them")
        if min(self.older_than_days or 0.0, self.max_gb or 0.0) < 0:
            raise ConfigError("--older-than and --max-gb are 0 or more")


def chosen(rows: Sequence[Row], which: Which, now_s: float, listing: str = "swarm cache") -> list[Row]:
    """The models to remove, of `rows` (the one used last first). Pure. listing: the command that shows them.

    ModelNotFoundError if none has that name.
    """
    if which.name is not None:
        found = _called(rows, which.name)
        if not found:
            raise ModelNotFoundError(f"no model {which.name!r} in the cache; `{listing}` lists what there is")
        return found
    if which.older_than_days is not None:
        return [row for row in rows if now_s - row.last_used_s > which.older_than_days * DAY_S]
    if which.max_gb is None:
        return list(rows)
    over, found = sum(row.num_bytes for row in rows) - which.max_gb * 1e9, []
    for row in reversed(rows):
        if over > 0 and not row.is_in_use:
            found.append(row)
            over -= row.num_bytes
    return found


def _called(rows: Sequence[Row], text: str) -> list[Row]:
    """Those of this name, or with a digest that begins so. A conversion has no digest here."""
    name, prefix = split_name(text)
    fetched = [row for row in rows if isinstance(row, CachedModel)]
    found: list[Row] = [row for row in fetched if row.model.name == name and row.model.digest.startswith(prefix)]
    if not prefix:
        found += [row for row in rows if isinstance(row, Conversion) and row.name == name]
    if not found and is_digest(text):
        found += [row for row in fetched if row.model.digest.startswith(text)]
    return found


def _remove(root: Path, row: Row) -> bool:
    return conversions.remove(row) if isinstance(row, Conversion) else cache.remove(root, row.model.digest)


def prune(data_dir: Path | None, which: Which, *, is_sure: bool, is_json: bool) -> None:
    """Remove models, after a question on a terminal. What a running process uses stays, and is said."""
    root = _root(data_dir)
    doomed = chosen(_rows(root), which, time.time(), cache_command(root.parent))
    if doomed and not is_sure:
        _ask(doomed)
    removed = [row for row in doomed if _remove(root, row)]
    for row in doomed:
        if row not in removed:
            remark(f"{_title(row)} is in use by a running process, and stays")
    if is_json:
        as_json.show({"removed": list(map(_facts, removed)), "kept": [_facts(row) for row in doomed if row not in removed]})
        return
    print(f"removed {counted(len(removed), 'model')}, {sum(row.num_bytes for row in removed) / 1e6:.1f} MB")


def _ask(doomed: Sequence[Row]) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(f"this would remove {counted(len(doomed), 'model')}; on a pipe, confirm with --yes")
    for row in doomed:
        remark(_line(row, time.time()))
    typer.confirm(
        f"Remove {counted(len(doomed), 'model')}, {sum(row.num_bytes for row in doomed) / 1e6:.1f} MB?", abort=True, err=True
    )
