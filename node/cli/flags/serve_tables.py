"""Tables `[[serve]]` of the file: which models a node serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.config import Serve
from protocols.errors import BadRequestError, ConfigError
from protocols.ids import Span

if TYPE_CHECKING:
    from node.training.spec.run_file import RunFile

KEY = "serve"

EXAMPLE = (
    "",
    "# What `swarm node` serves if no MODEL is given, one table for each model; without blocks, what the swarm needs most:",
    "#   [[serve]]",
    '#   model = "NAME"',
    '#   blocks = "0:8"',
)


def parse(document: Mapping[str, Any], file: Path) -> tuple[Serve, ...]:
    """The tables, in order; none if there are none. ConfigError names file, key, what it got and what was expected."""
    tables = document.get(KEY, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: {KEY!r} is a list of tables, each headed [[{KEY}]], got {str(tables)[:80]!r}")
    return tuple(_parsed(table, f"{file}: [[{KEY}]] number {number}") for number, table in enumerate(tables, 1))


def chosen(models: Sequence[str], serve: Sequence[Serve]) -> tuple[Serve, ...]:
    """The models of the command line, else those of the file."""
    return tuple(Serve(model=model) for model in models) if models else tuple(serve)


def _parsed(table: Mapping[str, Any], where: str) -> Serve:
    for key, value in table.items():
        if key not in ("model", "blocks"):
            raise ConfigError(f"{where}: unknown key {key!r}, expected model or blocks")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key} is text, got {str(value)[:80]!r}")
    if not table.get("model"):
        raise ConfigError(f"{where} has no model: a directory or a name")
    try:
        return Serve(model=table["model"], blocks=Span.parse(table["blocks"]) if "blocks" in table else None)
    except BadRequestError as error:
        raise ConfigError(f"{where}: blocks: {error}") from None


def of_run(run: RunFile | str) -> Serve:
    """The model of a run (a file that was read, or a name in the swarm), as what a node serves."""
    return Serve(model=run if isinstance(run, str) else run.name)
