"""Values of TOML or of a command line, by a field's type.

A type is what a dataclass's annotation says: text, whole number, number, true or false, a path, a list of these, a table, or None beside
one of them. Ranges are checked by the dataclass itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from node.training.data.sources import Source
from node.training.spec.run_file import Place
from protocols.errors import ConfigError
from swarm import places

_NAMES = {
    **{str: "text", int: "a whole number", float: "a number", bool: "true or false"},
    **{Path: "a path, as text", Place: "a directory, as text"},
    Source: 'a pattern of files, or a table as {files = "…", weight = 0.3}',
}


def types_of(section: type[Any]) -> Mapping[str, Any]:
    """Name -> type of each field of a dataclass."""
    return get_type_hints(section)


def converted(value: object, kind: Any, where: str, folder: Path) -> Any:
    """`value` (of TOML) as `kind`. folder: relative paths begin there. ConfigError says where, what is expected, and what it got."""
    choices = [one for one in _choices(kind) if one is not type(None)]
    assert len(choices) == 1, f"{kind} is no type of a field"
    wanted = choices[0]
    if get_origin(wanted) is tuple:
        return _list(value, wanted, where, folder)
    if wanted is Source and value != "":
        return _source(value, where, folder)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted in (Path, Place) and isinstance(value, str) and value:
        return _path(value, wanted, folder)
    if type(value) is wanted:
        return value
    raise ConfigError(f"{where} is {_named(wanted)}, got {_shown(value) if value != '' else 'an empty one'}")


def from_text(text: str, kind: Any, where: str, folder: Path) -> Any:
    """What `--where text` means: TOML's form of the value; for text and paths without quotes, and a list of one without brackets."""
    wanted = next(one for one in _choices(kind) if one is not type(None))
    is_list, inner = get_origin(wanted) is tuple, get_args(wanted)[0] if get_args(wanted) else wanted
    is_text = inner in (str, Path, Place, Source)
    if is_list and not text.lstrip().startswith("["):
        value = [text if is_text else _toml(text, where)]
    elif is_text and not is_list and not text.startswith("{"):
        return converted(text, kind, where, folder)
    else:
        value = _toml(text, where)
    return converted(value, kind, where, folder)


def fill(section: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass of these values; ConfigError names the first field without a default that is absent."""
    for one in dataclasses.fields(section):
        is_required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if is_required and one.name not in table:
            raise ConfigError(f"{where}{one.name} is missing: it is {_named(types_of(section)[one.name])}, and has no default")
    return section(**table)


def nearest(name: str, known: Iterable[str]) -> str:
    """What a name that is unknown may have meant, for the end of a message."""
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(known)}"


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, types.UnionType) or get_origin(kind) is Union else (kind,)


def _list(value: object, kind: Any, where: str, folder: Path) -> tuple[Any, ...]:
    inner = get_args(kind)
    length = None if inner[-1] is Ellipsis else len(inner)
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ConfigError(f"{where} is {_named(kind)}, got {_shown(value)}")
    return tuple(converted(one, inner[0], f"{where}[{number}]", folder) for number, one in enumerate(value))


def _source(value: object, where: str, folder: Path) -> Source:
    source = Source.parse(value, where)
    return dataclasses.replace(source, files=tuple(_pattern(one, folder) for one in source.files))


def _pattern(text: str, folder: Path) -> str:
    """Absolute, as `glob` reads it: letters of the folder's own name stand for themselves."""
    written = places.expanded(text)
    return str(written) if written.is_absolute() else os.path.join(glob.escape(str(folder)), str(written))


def _path(text: str, kind: Any, folder: Path) -> Any:
    """Absolute. A place that is no directory there, and is not written as a path, is a name."""
    path = folder / places.expanded(text)
    if kind is Place:
        return Place(str(path) if path.is_dir() or text.startswith((".", "/", "~")) else text)
    return path


def _toml(text: str, where: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        table = {}
    if table.keys() != {"value"}:
        raise ConfigError(f"{where} is written as in TOML, as 3, 1e-3, true or [0.9, 0.95], got {text[:80]!r}")
    return table["value"]


def _named(kind: Any) -> str:
    kind = next(one for one in _choices(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"a list, each {_named(inner[0])}" if inner[-1] is Ellipsis else f"a list of {len(inner)}, each {_named(inner[0])}"
    return _NAMES.get(kind, "a table")


def _shown(value: object) -> str:
    kinds = {bool: "true or false", str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    return f"{str(value)[:80]!r}, which is {kinds.get(type(value), 'a date')}"
