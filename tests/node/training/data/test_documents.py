"""Documents of each format, and each fault as one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from node.training.data import documents
from node.training.data.documents import Conversation, Item, Part, read_all
from node.training.data.sources import Source, files_of
from protocols.errors import DataError

CHAT = [{"role": "user", "content": "Grüße?"}, {"role": "assistant", "content": "世界"}]


def read(path: Path, **source: Any) -> list[Item]:
    made = Source(files=(str(path),), **source)
    return list(read_all(files_of(made, path.parent, "data.train[0]"), made))


def texts(items: Sequence[Item]) -> list[str]:
    """Each document as a whole."""
    found: list[str] = []
    for item in items:
        assert isinstance(item, Part)
        found = [*found, item.text] if item.is_first else [*found[:-1], found[-1] + item.text]
    return found


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo 世界\n".encode())
    assert texts(read(tmp_path / "a.txt")) == ["one\r\n\r\ntwo 世界\n"]


@pytest.mark.parametrize("block", [3, 64, 1 << 20])
def test_a_long_text_comes_in_the_same_parts_however_it_is_read(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART_LETTERS", 20)
    monkeypatch.setattr(documents, "_BLOCK_BYTES", block)
    text = "".join(f"Zeile {number} ü 世\n" for number in range(9)) + "x" * 50
    (tmp_path / "a.txt").write_text(text)
    parts = read(tmp_path / "a.txt")
    assert texts(parts) == [text]
    assert parts[-1].done_bytes == len(text.encode())
    own = [part.text for part in parts if isinstance(part, Part)]
    assert own == [part.text for part in read(lines(tmp_path / "a.jsonl", {"text": text})) if isinstance(part, Part)]
    assert max(map(len, own)) <= 20 and own[0].endswith("\n")


def test_fields_of_json_lines_csv_and_tsv_are_documents(tmp_path: Path) -> None:
    bodies = ["plain", 'with "quotes", and\na second line', "", "世界"]
    lines(tmp_path / "a.jsonl", *({"id": 1, "body": body} for body in bodies))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as opened:
            csv.writer(opened, delimiter=delimiter).writerows([["id", "body"], *(["1", body] for body in bodies)])
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        assert texts(read(tmp_path / name, field="body")) == [body for body in bodies if body]


def test_conversations_keep_their_messages(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"chat": CHAT}, {"chat": [{**CHAT[0], "name": "x", "tools": []}, CHAT[1]]})
    items = read(path, messages="chat")
    found = [item.messages for item in items if isinstance(item, Conversation)]
    assert found == [CHAT, [{**CHAT[0], "name": "x"}, CHAT[1]]]
    assert [item.done_bytes for item in items][-1] == path.stat().st_size


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name * 10)
    source = Source(files=("*.txt",))
    assert [item.done_bytes for item in read_all(files_of(source, tmp_path, "x"), source)] == [10, 20]


TEXT: Mapping[str, Any] = {}
FAULTS: list[tuple[str, bytes, Mapping[str, Any], str]] = [
    ("a.txt", b"", TEXT, "a.txt is empty, expected text: remove it, or fill it"),
    ("a.txt", b"abc\xffdef", TEXT, r"a.txt is not UTF-8 at byte 3 \(ff 64 65 66\), expected UTF-8 text"),
    ("a.txt", b"abc\xe4\xb8", TEXT, r"is not UTF-8 at byte 3 \(e4 b8\)"),
    ("a.txt", b"abc", {"messages": "chat"}, "a.txt is plain text, expected conversations"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', TEXT, r"line 2 of .*a.jsonl is not JSON \(Expecting value.*\), expected an object"),
    ("a.jsonl", b'{"text": "a"}\n\n[1]\n', TEXT, "line 3 of .* is a list of 1, expected an object"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', TEXT, "a.jsonl is not UTF-8 at byte 24"),
    ("a.jsonl", b'{"body": "a", "id": 1}\n', TEXT, r"line 1 of .* has no field 'text' \(it has body, id\), expected one: set field of"),
    ("a.jsonl", b'{"text": 7}\n', TEXT, "field 'text' in line 1 of .* is int, expected text"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', TEXT, "is not Unicode at letter 0"),
    ("a.jsonl", b"[" * 100_000, TEXT, "line 1 of .* is not JSON"),
    ("a.csv", b"id,text\n1,a\n2\n", TEXT, "line 3 of .* has 1 fields, expected 2, as the first line"),
    ("a.csv", b'id,text\n1,"a', TEXT, "line 2 of .* is not CSV"),
    ("a.csv", b"id,body\n1,a\n", TEXT, r"has no field 'text' \(it has body, id\)"),
    ("a.csv", b"id\n1\n", {"messages": "chat"}, "a.csv is CSV, expected conversations"),
    ("a.jsonl", b'{"chat": "a"}', {"messages": "chat"}, "the conversation in line 1 of .* is text, expected a list of 1 to 4096"),
    ("a.jsonl", b'{"chat": [{"role": "user"}]}', {"messages": "chat"}, "message 0 in line 1 of .* is an object, expected an object with"),
    ("a.jsonl", b'{"chat": [{"role": "user", "content": null}]}', {"messages": "chat"}, "content of message 0 in line 1 .* is null"),
    ("a.jsonl", b'{"chat": [{"role": "user", "content": "a"}]}', {"messages": "chat"}, r"has no answer \(roles: user\), expected"),
    ("a.jsonl", b'{"text": "a"}', {"messages": "chat"}, r"has no field 'chat' \(it has text\), expected one: set messages of this source"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "source", "words"), FAULTS)
def test_a_fault_is_one_line_that_names_the_place(
    tmp_path: Path, name: str, content: bytes, source: Mapping[str, Any], words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path / name, **source)
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text("{" + " " * 200 + "}")
    with pytest.raises(DataError, match=r"line 1 of .* has no end, expected at most 100 bytes"):
        read(tmp_path / "a.jsonl")
