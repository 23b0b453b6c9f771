"""Options from the environment and a TOML file.

Both are read whole, checked whole, and passed to typer as defaults.

Command line before environment before file before default. In the file, keys at the top are for every command that has the
option, and a table per command (`[node]`, `[generate]`) is for that one and wins. Whatever is unknown or of another type is
refused, with the nearest valid name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.cli.flags import serve_tables
from node.cli.flags.surface import Option
from node.config import Serve
from protocols.errors import ConfigError
from swarm import places

FILE_VARIABLE = "SWARM_CONFIG"
FOREIGN = re.compile(r"SWARM_(TRACE|FAULT|FAULTS|TEST_\w*)")
"""Variables with our prefix that are no options: traces and the faults of tests."""

MAX_FILE_BYTES = 1 << 20

Scope = tuple[str, ...]
"""The words of a table, which are mostly a command's; () = the top of the file."""

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path, as text"}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Value:
    """What an option is set to, and by what."""

    value: Any
    source: str
    """`SWARM_PEER`, or `FILE [node]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All values that do not come from the command line."""

    options: tuple[Option, ...] = ()
    values: Mapping[tuple[Scope, str], Value]
    """By command and flag; absent = the default holds."""

    file: Path
    """The file that was read, or would have been."""

    has_file: bool

    serve: tuple[Serve, ...] = ()
    """Of the file's [[serve]] tables."""

    fields: tuple[str, ...] = ()
    """Words of the command line that give fields of a node's run: `--section.field`, VALUE."""

    def of(self, option: Option) -> Value | None:
        """What `option` is set to; None = its default holds."""
        return self.values.get((option.command, option.flag))

    def default_map(self) -> dict[str, Any]:
        """The same in typer's form: nested by command, then by parameter."""
        result: dict[str, Any] = {}
        for option in self.options:
            found, inner = self.of(option), result
            for word in option.command:
                inner = inner.setdefault(word, {})
            if found is not None:
                inner[option.name] = found.value
        return result

    def sources(self, text: str, arguments: Sequence[str]) -> str:
        """`text`, and where the values of the flags that it names come from, where that is not the command line."""
        command, typed = tuple(arguments[:1]), {word.partition("=")[0] for word in arguments}
        found: dict[str, str] = {}
        for option in self.options:
            value = self.of(option)
            if (
                value
                and option.command[:1] == command
                and option.flag not in typed
                and re.search(rf"{option.flag}(?![\w-])", text)
            ):
                found[option.flag] = value.source
        return text + "".join(f" ({flag} was set by {source})" for flag, source in found.items())


def read(options: Sequence[Option], environment: Mapping[str, str], given: Path | None) -> Settings:
    """What environment and file say. given: `--config`, which must be there, as `SWARM_CONFIG` must; the usual place may be empty.

    ConfigError names variable or file, key, what it got and what was expected.
    """
    named = given or (places.expanded(environment[FILE_VARIABLE]) if environment.get(FILE_VARIABLE) else None)
    usual = places.config_file(environment)
    file = named or usual or Path("~/.config", places.NAME, "config.toml")  # for people: there is no home directory
    has_file = named is not None or (usual is not None and usual.is_file())
    document = _load(file) if has_file else {}
    serve = serve_tables.parse(document, file)
    document.pop(serve_tables.KEY, None)
    _check_keys(document, (), options, file)
    _check_variables(environment, options)
    values = {}
    for option in options:
        found = _from_variable(option, environment) or _from_file(option, document, file)
        if found is not None:
            values[option.command, option.flag] = found
    return Settings(options=tuple(options), values=values, file=file, has_file=has_file, serve=serve)


# --- the environment


def _check_variables(environment: Mapping[str, str], options: Sequence[Option]) -> None:
    known = {option.variable for option in options} | {FILE_VARIABLE}
    for name in sorted(environment):
        if name.startswith("SWARM_") and name not in known and not FOREIGN.fullmatch(name):
            raise ConfigError(f"unknown variable {name}{_nearest(name, known)}")


def _from_variable(option: Option, environment: Mapping[str, str]) -> Value | None:
    text = environment.get(option.variable, "").strip()
    if not text:  # set to nothing = not set, as in compose files
        return None
    where = option.variable
    if option.is_list:
        return Value([_from_text(option, part, where) for part in re.split(r"[,\s]+", text) if part], where)
    return Value(_from_text(option, text, where), where)


def _from_text(option: Option, text: str, where: str) -> Any:
    if option.kind is bool:
        if text.lower() not in _WORDS:
            raise _wrong(option, where, repr(text))
        return _WORDS[text.lower()]
    if option.kind in (int, float):
        try:
            return str(option.kind(text))
        except ValueError:
            raise _wrong(option, where, repr(text[:80])) from None
    return _checked(option, text, where)


# --- the file


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the configuration {file} cannot be read: {error.strerror}; check --config and {FILE_VARIABLE}"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the configuration {file} is larger than {MAX_FILE_BYTES >> 10} KiB; expected a TOML file of options")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {file} is no TOML: {error}; `swarm config --example` prints one") from None


def _check_keys(table: Mapping[str, Any], scope: Scope, options: Sequence[Option], file: Path) -> None:
    """ConfigError for the first key or table that no option or command has."""
    inside = [option for option in options if option.table[: len(scope)] == scope]
    tables = {option.table[len(scope)] for option in inside if len(option.table) > len(scope)}
    keys = {option.key for option in inside}
    where = f" in [{'.'.join(scope)}]" if scope else ""
    for key, value in table.items():
        if isinstance(value, dict) and key in tables:
            _check_keys(value, (*scope, key), options, file)
        elif isinstance(value, dict):
            raise ConfigError(f"{file}: unknown table [{'.'.join((*scope, key))}]{_nearest(key, tables)}")
        elif key.replace("_", "-") not in keys:
            others = sorted({" ".join(option.command) for option in options if option.key == key.replace("_", "-")})
            hint = f"; {', '.join(others)} has it" if others else _nearest(key, keys)
            raise ConfigError(f"{file}: unknown key {key!r}{where}{hint}")


def _from_file(option: Option, document: Mapping[str, Any], file: Path) -> Value | None:
    for scope, table in reversed(list(_tables(option.table, document))):
        for key in (option.key, option.key.replace("-", "_")):
            if key in table:
                where = f"{file}: key {key!r}" + (f" in [{'.'.join(scope)}]" if scope else "")
                return Value(_from_toml(option, table[key], where), where)
    return None


def _tables(table: Scope, document: Mapping[str, Any]) -> Iterator[tuple[Scope, Mapping[str, Any]]]:
    """The tables that speak of a command whose own is `table`, from the most general on."""
    yield (), document
    for depth in range(1, len(table) + 1):
        document = document.get(table[depth - 1], {})
        yield table[:depth], document


def _from_toml(option: Option, value: Any, where: str) -> Any:
    if option.is_list:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, option.kind) for part in parts):
            raise _wrong(option, where, _shown(value))
        return [_checked(option, str(part), where) for part in parts]
    if option.kind is bool and isinstance(value, bool):
        return value
    fits = {int: (int,), float: (int, float), bool: ()}.get(option.kind, (str,))
    if isinstance(value, bool) or not isinstance(value, fits):
        raise _wrong(option, where, _shown(value))
    return _checked(option, str(value), where)


# --- words


def _checked(option: Option, text: str, where: str) -> str:
    if option.choices and text not in option.choices:
        raise ConfigError(f"{where} is one of {', '.join(option.choices)}, got {text[:80]!r}")
    return str(places.expanded(text)) if option.kind is Path else text


def _wrong(option: Option, where: str, got: str) -> ConfigError:
    expected = f"a list of {_NAMES[option.kind]}" if option.is_list else _NAMES[option.kind]
    return ConfigError(f"{where} is {expected} (as {option.flag}), got {got}")


def _shown(value: Any) -> str:
    kind = {bool: "true or false", str: "text", int: "a whole number", float: "a number", list: "a list"}.get(
        type(value), "a date"
    )
    return f"{str(value)[:80]!r}, which is {kind}"


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f": did you mean {found[0]}?" if found else ": `swarm config --example` lists all"
