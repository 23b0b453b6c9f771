"""Reads a `RUN.toml`, with fields from the command line in its place.

Everything is read, then checked; the first fault is one ConfigError: where, what it got, what was expected, what to do.
Paths in the file are relative to its folder, paths on the command line to the working directory.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.training.spec.run_file import RunFile
from node.training.spec.values import converted, fill, from_text, nearest, types_of
from protocols.errors import BadRequestError, ConfigError

MAX_FILE_BYTES = 1 << 20


def _sections() -> Iterator[tuple[str, type[Any]]]:
    for name, kind in types_of(RunFile).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield name, kind


SECTIONS: Mapping[str, type[Any]] = dict(_sections())
TOP: Mapping[str, Any] = {name: kind for name, kind in types_of(RunFile).items() if name not in SECTIONS}
"""Fields that stand before the first section."""

_INSTEAD: tuple[tuple[str, ...], ...] = (
    ("training.steps", "training.tokens", "training.ratio"),
    ("model.config", "model.checkpoint", "model.size"),
)
"""Of each group a run has one; that of the command line replaces that of the file."""


def read(file: Path, overrides: Mapping[str, str] | None = None, *, working_directory: Path | None = None) -> RunFile:
    """The run that a file describes. overrides: `section.field` (or a field of the top) -> text, as `parse_overrides` gives.

    working_directory: where relative paths of overrides begin; default: the process's.
    """
    document = _load(file)
    with _naming(file):
        values = _of_document(document, file.absolute().parent)
    _drop_replaced(values, overrides or {})
    for name, text in (overrides or {}).items():
        section, key, kind = _field(name)
        values.setdefault(section, {})[key] = from_text(text, kind, f"--{name}", working_directory or Path.cwd())
    with _naming(file):
        return _built(values)


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """`["--training.steps", "100", "--optimizer.lr=1e-3"]` as {name: text}; the last one of a name counts.

    ConfigError for a word that is no such option, an unknown field (with the nearest name), and an option without a value.
    """
    found: dict[str, str] = {}
    left = list(words)
    while left:
        option, has_value, text = left.pop(0).partition("=")
        if not option.startswith("--"):
            raise ConfigError(f"fields of a run are given as --section.field VALUE, got {option[:80]!r}")
        if not has_value and not left:
            raise ConfigError(f"{option} has no value: give {option} VALUE")
        _field(option[2:])
        found[option[2:]] = text if has_value else left.pop(0)
    return found


def field_names() -> tuple[str, ...]:
    """All that `--section.field` may name, in the order of the classes."""
    return (*TOP, *(f"{section}.{key}" for section, kind in SECTIONS.items() for key in types_of(kind)))


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the run file {file} cannot be read: {error.strerror}; examples/prose/run.toml is one") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the run file {file} is larger than {MAX_FILE_BYTES >> 10} KiB; expected TOML that describes a run")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the run file {file} is no TOML: {error}; examples/prose/run.toml is one") from None


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Refusals inside begin with the file's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except BadRequestError as error:  # a range that the signed spec has, too
        raise ConfigError(f"{file}: {error}; change it there, or give --SECTION.FIELD") from None


def _of_document(document: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """{section: {field: value}}; the top is section ""."""
    values: dict[str, dict[str, Any]] = {}
    for name, value in document.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{name} is a section: write [{name}], and its fields below")
            values[name] = _of_section(name, value, folder)
        elif name in TOP:
            values.setdefault("", {})[name] = converted(value, TOP[name], name, folder)
        elif isinstance(value, dict):
            raise ConfigError(f"unknown section [{name}]: {nearest(name, SECTIONS)}")
        else:
            raise ConfigError(f"unknown field {name!r} before the first section: {_meant(name, TOP)}")
    return values


def _of_section(section: str, table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    known = types_of(SECTIONS[section])
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown field {key!r} in [{section}]: {_meant(key, known)}")
    return {key: converted(value, known[key], f"{section}.{key}", folder) for key, value in table.items()}


def _meant(key: str, known: Mapping[str, Any]) -> str:
    """The section that has a field of this name, else the nearest name where it stands."""
    others = [f"[{section}]" for section, kind in SECTIONS.items() if key in types_of(kind)] + ["the top"] * (key in TOP)
    return f"{' and '.join(others)} has one" if others else nearest(key, known)


def _field(name: str) -> tuple[str, str, Any]:
    """(section, field, type) of `section.field`."""
    section, dot, key = name.rpartition(".")
    known = types_of(SECTIONS[section]) if section in SECTIONS else {} if dot else TOP
    if key not in known:
        same = [f"--{one}" for one in field_names() if one.rpartition(".")[2] == key]
        meant = f"did you mean {' or '.join(same)}?" if same else nearest(name, field_names())
        raise ConfigError(f"unknown field --{name[:80]}: {meant}")
    return section, key, known[key]


def _drop_replaced(values: Mapping[str, dict[str, Any]], overrides: Mapping[str, str]) -> None:
    for group in _INSTEAD:
        for name in group if overrides.keys() & set(group) else ():
            section, _, key = name.partition(".")
            values.get(section, {}).pop(key, None)


def _built(values: Mapping[str, Mapping[str, Any]]) -> RunFile:
    sections = {name: fill(kind, values.get(name, {}), f"{name}.") for name, kind in SECTIONS.items()}
    found: RunFile = fill(RunFile, {**values.get("", {}), **sections}, "")
    return found
