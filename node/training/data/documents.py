"""Reads documents from files: text, JSONL, CSV.

Files are read as streams, so memory does not grow with them. A long text comes in parts, cut after a line's end, always at the same
letters: so its tokens are the same on every machine. Tables of Arrow are in `columns.py`.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from node.training.data import columns
from node.training.data.faults import bad
from node.training.data.record import Record
from node.training.data.sources import DataFile, Source
from protocols.errors import DataError

PART_LETTERS = 1 << 20
"""A text above this is encoded in parts."""

MAX_LINE_BYTES = 64 << 20
"""Of a line of JSON or CSV."""

MAX_MESSAGES = 4_096
_BLOCK_BYTES = 1 << 20

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A text document, or a part of one."""

    text: str
    is_first: bool = True
    is_last: bool = True
    done_bytes: int
    """Bytes of the files up to and with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, each with `role` and `content`; at least one is the assistant's."""

    messages: list[Message]
    where: str
    """What errors call it: file and line."""

    done_bytes: int


Item = Part | Conversation


def read_all(files: Iterable[DataFile], source: Source) -> Iterator[Item]:
    """The documents of all files; `done_bytes` counts those of the files before, too. Errors as of `read`."""
    before = 0
    for file in files:
        for item in read(file, source):
            yield replace(item, done_bytes=before + item.done_bytes)
        before += file.size()


def read(file: DataFile, source: Source) -> Iterator[Item]:
    """The documents of one file, in order; empty ones are left out. DataError names file and line (or byte)."""
    if not file.size():
        raise bad(file.path, "is empty", "text", "remove it, or fill it")
    if file.format == "text":
        if source.messages:
            raise bad(file.path, "is plain text", "conversations", f"leave out messages = {source.messages!r}, or give JSONL")
        yield from _text(file.path)
    elif file.format == "jsonl":
        yield from _records(_json_lines(file.path), source)
    elif file.format in ("csv", "tsv"):
        yield from _records(_table_lines(file.path, "," if file.format == "csv" else "\t", source), source)
    else:
        yield from _records(columns.records(file, source.messages or source.field), source)


def _text(path: Path) -> Iterator[Part]:
    held, is_first, done = "", True, 0
    with path.open("rb") as opened:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while block := opened.read(_BLOCK_BYTES):
            held += _decoded(decoder, block, done, path)
            done += len(block)
            if is_first:
                held = held.removeprefix("\ufeff")
            while len(held) > PART_LETTERS:
                stop = _cut_at(held)
                yield Part(text=held[:stop], is_first=is_first, is_last=False, done_bytes=done)
                held, is_first = held[stop:], False
        _decoded(decoder, b"", done, path, is_end=True)
    if held:
        yield Part(text=held, is_first=is_first, done_bytes=done)


def _cut_at(text: str) -> int:
    """Where the first part ends: after the last line's end in its first PART_LETTERS letters, or there."""
    return text.rfind("\n", 0, PART_LETTERS) + 1 or PART_LETTERS


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, done: int, path: Path, is_end: bool = False) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, is_end)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, done - held + error.start, error) from None


def _not_utf8(path: Path, at: int, error: UnicodeDecodeError) -> DataError:
    got = error.object[error.start : error.start + 4].hex(" ")
    return bad(path, f"is not UTF-8 at byte {at} ({got})", "UTF-8 text", "convert it, e.g. by iconv -t UTF-8")


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """(number from 1, line with its end, bytes up to and with it)."""
    done = 0
    with path.open("rb") as opened:
        number = 0
        while line := opened.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise bad(f"line {number} of {path}", "has no end", f"at most {MAX_LINE_BYTES} bytes", "divide it")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, done + error.start, error) from None
            done += len(line)
            yield number, text.removeprefix("\ufeff") if number == 1 else text, done


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line, done in _lines(path):
        where = f"line {number} of {path}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad(where, f"is not JSON ({' '.join(str(error).split())[:80]})", "an object", "mend the line") from None
        if not isinstance(found, dict):
            raise bad(where, f"is {_kind(found)}", 'an object, as {"text": …}', "mend the line")
        yield Record(where=where, fields=found, done_bytes=done)


def _table_lines(path: Path, delimiter: str, source: Source) -> Iterator[Record]:
    if source.messages:
        raise bad(path, "is CSV", "conversations", "give them as JSONL, Parquet or a saved dataset")
    csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process: the module has no other way
    done = 0

    def lines() -> Iterator[str]:
        nonlocal done
        for _number, line, stop in _lines(path):
            done = stop
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for values in reader:
            where = f"line {reader.line_num} of {path}"
            if not names:
                names = values
            elif values and len(values) != len(names):
                raise bad(where, f"has {len(values)} fields", f"{len(names)}, as the first line", "mend the line")
            elif values:
                yield Record(where=where, fields=dict(zip(names, values, strict=True)), done_bytes=done)
    except csv.Error as error:
        raise bad(
            f"line {reader.line_num} of {path}", f"is not CSV ({error})", "fields in quotes where needed", "mend the line"
        ) from None


def _records(records: Iterator[Record], source: Source) -> Iterator[Item]:
    name = source.messages or source.field
    for record in records:
        if name not in record.fields:
            has = ", ".join(sorted(map(str, record.fields)))[:120] or "none"
            key = "messages" if source.messages else "field"
            raise bad(record.where, f"has no field {name!r} (it has {has})", "one", f"set {key} of this source")
        value = record.fields[name]
        if source.messages:
            yield Conversation(messages=_messages(value, record.where), where=record.where, done_bytes=record.done_bytes)
        elif value is not None and value != "":
            yield from _parts(value, name, record)


def _parts(value: object, name: str, record: Record) -> Iterator[Part]:
    text, is_first = _checked(value, f"field {name!r} in {record.where}"), True
    while len(text) > PART_LETTERS:
        stop = _cut_at(text)
        yield Part(text=text[:stop], is_first=is_first, is_last=False, done_bytes=record.done_bytes)
        text, is_first = text[stop:], False
    yield Part(text=text, is_first=is_first, done_bytes=record.done_bytes)


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise bad(
            f"the conversation in {where}", f"is {_kind(value)}", f"a list of 1 to {MAX_MESSAGES} messages", "mend the record"
        )
    found: list[Message] = []
    for number, message in enumerate(value):
        name = f"message {number} in {where}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise bad(name, f"is {_kind(message)}", "an object with role and content", "mend the record")
        words = {key: text for key, text in message.items() if key in ("role", "content") or isinstance(text, str)}
        found.append({str(key): _checked(text, f"{key} of {name}") for key, text in words.items()})
    if not any(message["role"] == "assistant" and message["content"] for message in found):
        roles = ", ".join(message["role"] for message in found)[:80]
        raise bad(where, f"has no answer (roles: {roles})", "a message with the role assistant", "leave the record out")
    return found


def _checked(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise bad(where, f"is {_kind(value)}", "text", "choose another field, or mend the record")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise bad(where, f"is not Unicode at letter {error.start} (half a letter)", "text", "mend the record") from None
    return value


def _kind(value: object) -> str:
    return (
        f"a list of {len(value)}"
        if isinstance(value, list)
        else {"NoneType": "null", "dict": "an object", "str": "text"}.get(type(value).__name__, type(value).__name__)
    )
