"""Sources: what a run file may say, which files it means."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from node.training.data.sources import Source, files_of
from protocols.errors import ConfigError


def names(folder: Path, *patterns: str) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in files_of(Source(files=patterns), folder, "data.train[0]")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "B.txt", "deep/x.txt", "deep/er/y.txt", "a[1].txt", "z.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    return tmp_path


def test_files_come_by_pattern_then_by_name_and_each_once(folder: Path) -> None:
    assert names(folder, "z.jsonl", "*.txt", "a.txt") == ["z.jsonl", "B.txt", "a.txt", "a[1].txt", "b.txt"]
    assert names(folder, "**/*.txt") == ["B.txt", "a.txt", "a[1].txt", "b.txt", "deep/er/y.txt", "deep/x.txt"]


def test_a_name_that_exists_is_no_pattern(folder: Path) -> None:
    assert names(folder, "a[1].txt") == ["a[1].txt"]


def test_directories_that_a_pattern_matches_are_passed_over(folder: Path) -> None:
    assert names(folder, "*") == ["B.txt", "a.txt", "a[1].txt", "b.txt", "z.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("none/*.txt", r"data.train\[0\]: no file matches 'none/\*.txt' in /.*; expected at least one: check the path"),
        ("gone.txt", "no file matches 'gone.txt'"),
        ("deep", r"deep is a directory that no dataset was saved in; name its files: .*deep/\*"),
    ],
)
def test_what_matches_nothing_is_refused(folder: Path, pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        names(folder, pattern)


def test_a_source_is_a_pattern_or_a_table() -> None:
    assert Source.parse("a/*.txt", "x") == Source(files=("a/*.txt",))
    table = {"files": ["a.jsonl", "b.jsonl"], "messages": "chat", "weight": 0.1}
    assert Source.parse(table, "x") == Source(files=("a.jsonl", "b.jsonl"), messages="chat", weight=Fraction(1, 10))
    assert Source.parse({"files": "a.csv", "field": "body"}, "x") == Source(files=("a.csv",), field="body")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "x must be a pattern or a table with `files`, got int 7"),
        ({}, "x.files must be a pattern or a list of patterns"),
        ({"files": []}, "x.files must be"),
        ({"files": "a", "feild": "b"}, "unknown field str 'feild'; there are field, files, messages, weight"),
        ({"files": "a", "field": ""}, "x.field must be the name of a field"),
        ({"files": "a", "field": "b", "messages": "c"}, "both `field` and `messages`"),
        ({"files": "a", "weight": 0}, "x.weight must be a number above 0"),
        ({"files": "a", "weight": True}, "x.weight must be a number above 0"),
        ({"files": "a", "weight": float("inf")}, "x.weight must be a number above 0"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Source.parse(value, "x")
