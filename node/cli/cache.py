"""`swarm cache`: weights fetched from peers, and how to remove them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import typer

from node.cli.console import remark
from protocols.errors import ConfigError, ModelNotFoundError
from protocols.words import counted
from swarm import places
from swarm.suggestion import cache_command
from swarm.weights import cache
from swarm.weights.cache import CachedModel
from swarm.weights.names import is_digest, split_name

DAY_S = 86_400.0


def _root(data_dir: Path | None) -> Path:
    return (data_dir or places.data_dir()) / "weights"


def show(data_dir: Path | None, *, as_json: bool) -> None:
    """All models, the one used last first."""
    rows = cache.listed(_root(data_dir))
    if as_json:
        print(json.dumps({"directory": str(_root(data_dir)), "models": [_facts(row) for row in rows]}))
        return
    if not rows:
        print(f"nothing was fetched yet; {_root(data_dir)} is empty")
    for row in rows:
        print(_line(row, time.time()))


def _facts(row: CachedModel) -> dict[str, object]:
    return {
        "name": row.model.name,
        "digest": row.model.digest,
        "bytes": row.num_bytes,
        "blocks": row.blocks_here,
        "num_blocks": row.num_blocks,
        "is_complete": row.is_complete,
        "last_used": round(row.last_used_s, 3),
        "is_in_use": row.is_in_use,
    }


def _line(row: CachedModel, now_s: float) -> str:
    blocks = "all of it" if row.is_complete else f"{row.blocks_here} of {counted(row.num_blocks, 'block')}"
    used = "in use" if row.is_in_use else f"used {_ago(now_s - row.last_used_s)} ago"
    return f"{row.model.name}@{row.model.digest[:12]}  {row.num_bytes / 1e6:.1f} MB, {blocks}, {used}"


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


def chosen(rows: list[CachedModel], which: Which, now_s: float, listing: str = "swarm cache") -> list[CachedModel]:
    """The models to remove, of `rows` (the one used last first). Pure. listing: the command that shows them.

    ModelNotFoundError where none has that name.
    """
    if which.name is not None:
        name, prefix = split_name(which.name)
        found = [row for row in rows if row.model.name == name and row.model.digest.startswith(prefix)]
        if not found and is_digest(which.name):
            found = [row for row in rows if row.model.digest.startswith(which.name)]
        if not found:
            raise ModelNotFoundError(f"no model {which.name!r} in the cache; `{listing}` lists what there is")
        return found
    if which.older_than_days is not None:
        return [row for row in rows if now_s - row.last_used_s > which.older_than_days * DAY_S]
    if which.max_gb is None:
        return rows
    over, found = sum(row.num_bytes for row in rows) - which.max_gb * 1e9, []
    for row in reversed(rows):
        if over > 0 and not row.is_in_use:
            found.append(row)
            over -= row.num_bytes
    return found


def prune(data_dir: Path | None, which: Which, *, is_sure: bool, as_json: bool) -> None:
    """Remove models, after a question on a terminal. What a running process uses stays, and is said."""
    root = _root(data_dir)
    doomed = chosen(cache.listed(root), which, time.time(), cache_command(root.parent))
    if doomed and not is_sure:
        _ask(doomed)
    removed = [row for row in doomed if cache.remove(root, row.model.digest)]
    for row in doomed:
        if row not in removed:
            remark(f"{row.model.name}@{row.model.digest[:12]} is in use by a running process, and stays")
    if as_json:
        print(
            json.dumps(
                {"removed": [_facts(row) for row in removed], "kept": [_facts(row) for row in doomed if row not in removed]}
            )
        )
        return
    print(f"removed {counted(len(removed), 'model')}, {sum(row.num_bytes for row in removed) / 1e6:.1f} MB")


def _ask(doomed: list[CachedModel]) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(f"this would remove {counted(len(doomed), 'model')}; say --yes where nobody can be asked")
    for row in doomed:
        remark(_line(row, time.time()))
    typer.confirm(
        f"Remove {counted(len(doomed), 'model')}, {sum(row.num_bytes for row in doomed) / 1e6:.1f} MB?", abort=True, err=True
    )
