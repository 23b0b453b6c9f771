"""Commands that the documents show are understood by the real parsers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands_of_files import command_of, in_shell, parsed

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", re.M | re.S)
WALK = re.compile(r"^ *```text\n(.*?)^ *```", re.M | re.S)
PROGRAM = re.compile(r"^\s*(?:\.venv/bin/python )?(scripts/[\w.]+|examples/[\w./]+|\.ci/\w+)", re.M)
INLINE = re.compile(r"`swarm (\w[^`]*)`")
HISTORY = {"CHANGELOG.md", "log.md"}
"""These say what was there once."""


def scripts_of(document: Path) -> Iterator[str]:
    """What is typed: blocks of a shell, and the lines after `$` of a walk."""
    text = document.read_text(encoding="utf-8")
    yield from BLOCK.findall(text)
    for walk in WALK.findall(text):
        yield "\n".join(re.findall(r"^\$ (.*)$", walk, re.M))


TYPED = [(document.name, script) for document in DOCUMENTS for script in scripts_of(document)]
SHOWN = sorted({(name, shlex.join(words)) for name, script in TYPED for words in in_shell(script) if words[0] != "COMMAND"})
PROGRAMS = sorted({(name, program) for name, script in TYPED for program in PROGRAM.findall(script)})
MENTIONED = sorted(
    {
        (document.name, " ".join(words.split()))
        for document in DOCUMENTS
        if document.name not in HISTORY
        for words in INLINE.findall(document.read_text(encoding="utf-8"))
        if not words.startswith("COMMAND")
    }
)


def test_the_documents_show_many_commands() -> None:
    assert len(SHOWN) > 40 and len(PROGRAMS) > 20 and len(MENTIONED) > 70
    assert {words.split()[0] for _, words in SHOWN} >= {"node", "serve", "up", "train", "chat", "keys", "status"}


@pytest.mark.parametrize(("document", "words"), SHOWN, ids=str)
def test_a_shown_command_is_understood(document: str, words: str) -> None:
    parsed(shlex.split(words))


@pytest.mark.parametrize(("document", "words"), MENTIONED, ids=str)
def test_a_command_within_a_sentence_has_the_flags_that_it_names(document: str, words: str) -> None:
    command, rest = command_of(words.split())
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in rest if re.fullmatch(r"--[a-z-]+(=.*)?", word)} <= known


@pytest.mark.parametrize(("document", "name"), PROGRAMS, ids=str)
def test_a_shown_script_is_there(document: str, name: str) -> None:
    assert (ROOT / name).exists()
