"""Where text comes from: files, their format, their hashes.

A source of a run file is a pattern, `"text/*.txt"`, or a table: `{files = ["chats/*.jsonl"], messages = "messages", weight = 2}`.

Format by suffix: `.jsonl` and `.ndjson`; `.csv` and `.tsv` (first line: names of the columns); `.parquet`; a directory that
`Dataset.save_to_disk` of `datasets` wrote; all else is plain text. A document is a text file, a line of JSON, or a record of a table.
A text file is one document as a whole, because a blank line is a paragraph's end more often than a document's; text of many documents
belongs into JSONL. Bytes are taken as they are: line ends are not changed; a byte order mark is dropped.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from node.training.data.saved_dataset import STATE, files_of_dataset
from protocols.errors import ConfigError, shown

FORMATS: Mapping[str, str] = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"},
}
"""Suffix -> format; any other suffix is `text`."""

_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a run file says about one source."""

    files: tuple[str, ...]
    """Names or glob patterns (`**` = any folders), each relative to the run file's folder; at least one."""

    field: str = "text"
    """Of JSONL, CSV, Parquet and datasets: which field holds a document's text."""

    messages: str = ""
    """Which field holds a conversation, a list of {role, content}; "" = the source is text. Only the assistant's answers are targets."""

    weight: Fraction | None = None
    """Its share of the sequences, relative to the other sources; None = as many as it has."""

    @classmethod
    def parse(cls, value: object, name: str) -> Source:
        """A pattern, or a table with these fields. name: what errors call it, as `data.train[0]`. ConfigError."""
        if isinstance(value, str):
            return cls(files=(value,))
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a pattern or a table with `files`, got {shown(value)}")
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise ConfigError(f"{name} has the unknown field {shown(unknown[0])}; there are {', '.join(sorted(known))}")
        patterns = [value["files"]] if isinstance(value.get("files"), str) else value.get("files")
        if not isinstance(patterns, list) or not patterns or not all(isinstance(one, str) and one for one in patterns):
            raise ConfigError(f"{name}.files must be a pattern or a list of patterns, got {shown(patterns)}")
        for key in ("field", "messages"):
            if not isinstance(value.get(key, "x"), str) or not value.get(key, "x"):
                raise ConfigError(f"{name}.{key} must be the name of a field, got {shown(value[key])}")
        if "field" in value and "messages" in value:
            raise ConfigError(f"{name} has both `field` and `messages`: a source is text or conversations; leave one out")
        weight = _weight(value["weight"], name) if "weight" in value else None
        return cls(files=tuple(patterns), field=value.get("field", "text"), messages=value.get("messages", ""), weight=weight)


def _weight(value: object, name: str) -> Fraction:
    """As written: 0.1 is a tenth exactly, on every machine."""
    if type(value) not in (int, float) or not math.isfinite(float(str(value))) or float(str(value)) <= 0:
        raise ConfigError(f"{name}.weight must be a number above 0, got {shown(value)}")
    return Fraction(str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file of a source."""

    path: Path
    format: str
    """`text`, `jsonl`, `csv`, `tsv`, `parquet` or `arrow`."""

    def size(self) -> int:
        return self.path.stat().st_size

    def identity(self) -> tuple[str, str, int, str]:
        """(name, format, size, SHA-256 of the contents): what its tokens depend on."""
        with self.path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return self.path.name, self.format, os.fstat(opened.fileno()).st_size, digest


def files_of(source: Source, folder: Path, name: str) -> list[DataFile]:
    """The files of a source: pattern by pattern, in each by path, each file once.

    The order does not depend on the machine, as long as the files are called the same below the pattern's first folder.
    ConfigError if a pattern matches nothing, or a directory that no dataset was saved in.
    """
    found: dict[Path, DataFile] = {}
    for pattern in source.files:
        place = folder / Path(pattern).expanduser()
        paths = [place] if place.exists() else _matches(place)
        listed = [file for path in paths for file in _files_at(path, len(paths) == 1, name)]
        if not listed:
            where = "" if Path(pattern).is_absolute() else f" in {folder}"
            raise ConfigError(f"{name}: no file matches {pattern[:200]!r}{where}; expected at least one: check the path")
        found.update({file.path: file for file in listed if file.path not in found})
    return list(found.values())


def _matches(place: Path) -> list[Path]:
    if not _MAGIC & set(str(place)):
        return []
    return sorted(map(Path, glob.glob(str(place), recursive=True)), key=lambda path: path.parts)


def _files_at(path: Path, is_alone: bool, name: str) -> list[DataFile]:
    """A file, or those of a saved dataset; other directories that a pattern matches are passed over."""
    if not path.is_dir():
        return [DataFile(path=path, format=FORMATS.get(path.suffix.lower(), "text"))]
    if (path / STATE).exists():
        return [DataFile(path=file, format="arrow") for file in files_of_dataset(path)]
    if (path / "dataset_dict.json").exists():
        splits = sorted(split.name for split in path.iterdir() if (split / STATE).exists())
        raise ConfigError(f"{name}: {path} holds several datasets; name one: {', '.join(str(path / split) for split in splits)}")
    if is_alone:
        raise ConfigError(f"{name}: {path} is a directory that no dataset was saved in; name its files: {path / '*'}")
    return []
