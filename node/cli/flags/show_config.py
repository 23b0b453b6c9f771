"""`swarm config`: the value of every option, and its source.

It is printed in the form of a file that could be used as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from node.cli.flags import serve_tables
from node.cli.flags.configuration import Scope, Settings
from node.cli.flags.surface import TABLES, Option
from node.cli.terminal import as_json
from node.config import Serve
from protocols.errors import ConfigError

SECRET = ("--join",)
"""Options whose value is not printed."""

HIDDEN = "(an invitation, not shown)"


def run(settings: Settings, command: str | None, *, is_example: bool, is_json: bool) -> None:
    """Print the values of all commands, or of one; or an example file with every key commented out."""
    known = {option.command[0] for option in settings.options if option.command}
    if command is not None and command not in known:
        raise ConfigError(f"no command {command!r} has options; expected one of {', '.join(sorted(known))}")
    if is_json and not is_example:
        as_json.show(facts(settings, command))
        return
    print("\n".join(example(settings) if is_example else effective(settings, command)), flush=True)


def effective(settings: Settings, command: str | None = None) -> Iterator[str]:
    """TOML: each option with its value and where that comes from; an option without a value is commented out."""
    yield f"# file: {settings.file}{'' if settings.has_file else ' (not there)'}"
    for scope, options in _by_table(settings).items():
        if command is not None and scope[:1] != (TABLES.get(command, command),):
            continue
        yield from ("", f"[{'.'.join(scope)}]") if scope else ()
        for option in options:
            value, source = _value(settings, option)
            line = f"{option.key} = {_toml(value)}"
            yield f"{line if _is_set(value) else f'# {option.key}':<40} # {source}"
    if command in (None, "node"):
        yield from _serve(settings.serve, settings.file)


def _serve(serve: Sequence[Serve], file: Path) -> Iterator[str]:
    for one in serve:
        yield from ("", f"[[{serve_tables.KEY}]]  # {file}", f"model = {_toml(one.model)}")
        if one.blocks is not None:
            yield f"blocks = {_toml(str(one.blocks))}"


def facts(settings: Settings, command: str | None = None) -> dict[str, object]:
    """The same values for programs; an option of every command has the command ""."""
    shown = []
    for option in settings.options:
        if command is None or option.command[:1] == (command,):
            value, source = _value(settings, option)
            words = " ".join(option.command)
            shown.append({"command": words, "key": option.key, "value": value, "source": source})
    serve = [{"model": one.model, "blocks": None if one.blocks is None else str(one.blocks)} for one in settings.serve]
    return {"file": settings.file, "has_file": settings.has_file, "options": shown, "serve": serve}


def _value(settings: Settings, option: Option) -> tuple[Any, str]:
    """What an option is set to, and by what; an invitation is not shown."""
    found = settings.of(option)
    value, source = (option.default, "default") if found is None else (_typed(option, found.value), found.source)
    return (HIDDEN if option.flag in SECRET and _is_set(value) else value), source


def example(settings: Settings) -> Iterator[str]:
    """A file with every key, its default, and what it does; all commented out."""
    yield f"# Options of `swarm`; looked for in {settings.file}, or named by --config or SWARM_CONFIG."
    yield "# A key above the first table is for every command that has the option. The environment and the command line win."
    yield '# peer = ["/ip4/203.0.113.5/tcp/4000/p2p/12D3KooW…"]'
    for scope, options in _by_table(settings).items():
        yield from ("", f"[{'.'.join(scope)}]") if scope else ()
        for option in options:
            shown = _toml(option.default) if _is_set(option.default) else _toml(_sample(option))
            yield from (f"# {option.help} ({option.variable})", f"# {option.key} = {shown}")
    yield from serve_tables.EXAMPLE


def _by_table(settings: Settings) -> dict[Scope, list[Option]]:
    groups: dict[Scope, list[Option]] = {(): []}
    for option in settings.options:
        groups.setdefault(option.table, []).append(option)
    return groups


def _typed(option: Option, value: Any) -> Any:
    """Values travel to typer as text; shown, a number is a number."""
    return option.kind(value) if option.kind in (int, float) and not option.is_list else value


def _sample(option: Option) -> Any:
    return [] if option.is_list else {int: 0, float: 0.0, bool: False}.get(option.kind, "")


def _is_set(value: Any) -> bool:
    return value is not None and value != [] and value != ""


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
