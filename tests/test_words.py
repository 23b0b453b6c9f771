"""`scripts/words`: files that were clean stay so, and a word of the private language is found wherever prose stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import words  # noqa: E402

ALWAYS_CLEAN = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs",
    "node",
    "protocols",
    "scripts",
    "swarm",
    "tests",
}
"""What may not leave `words.CLEAN` any more."""


def found(name: str, text: str) -> list[tuple[int, str]]:
    return [(each.line, each.word) for each in words.search(Path(name), text)]


def test_clean_files_stay_clean_and_their_list_only_grows() -> None:
    assert set(words.CLEAN) >= ALWAYS_CLEAN
    for name in words.CLEAN:
        assert words.files([name]), f"{name} of CLEAN is no file and no folder: its words would go unseen"
    dirty = [str(each) for path in words.files(words.CLEAN) for each in words.search(path, (ROOT / path).read_text())]
    assert not dirty, "\n".join(dirty)


def test_first_lines_that_were_short_stay_short() -> None:
    assert set(words.SHORT_FIRST_LINES) >= {"protocols", "swarm", "node", "scripts", "tests"}
    assert len(words.files(words.SHORT_FIRST_LINES)) > 100, "the walk found too few files to prove anything"
    long = words.long_first_lines(words.SHORT_FIRST_LINES)
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nobody knows the engine's tapes.", [(1, "tapes"), (1, "nobody")]),
        ("A matrix product, a `row` and [a link](tape.md).", []),
        ("a prefill chunk\nand a chunk", [(2, "chunk")]),
        ("```text\nnobody\n```\nsomebody", [(4, "somebody")]),
        ("<!-- tree: written by scripts/docs.py -->\nnobody\n<!-- end of tree -->\nwhoever", [(4, "whoever")]),
    ],
)
def test_words_are_found_in_the_prose_of_markdown_only(text: str, expected: list[tuple[int, str]]) -> None:
    assert sorted(found("page.md", text)) == sorted(expected)


def test_words_are_found_in_docstrings_comments_messages_and_names() -> None:
    lines = (
        '"""What a stranger sends."""',
        "x = 1  # nobody waits",
        "class Tape:",
        '    """One."""',
        'print(f"{town} waits in the town")',
        'key = "town"',
    )
    text = "\n".join(lines) + "\n"
    assert found("page.py", text) == [(1, "stranger"), (2, "nobody"), (5, "town"), (3, "Tape")]


def test_a_files_own_name_counts() -> None:
    assert found("swarm/doors.py", '"""The dispatcher."""\n') == [(1, "doors")]
