"""README and docs/ are short, with valid links and the script's picture."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import picture  # noqa: E402
import words  # noqa: E402

DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150
"""A newcomer reads this much."""

LINE = 140
"""Longest line of prose; tables, code and generated parts may be wider."""


def test_the_readme_is_short_and_begins_with_the_picture() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert any(line.startswith("![") and "(docs/route.svg)" in line for line in lines[:20])


def test_the_picture_is_what_its_script_makes() -> None:
    assert picture.FILE == ROOT / "docs" / "route.svg"
    assert picture.FILE.read_text(encoding="utf-8") == picture.route(), "old: .venv/bin/python scripts/docs.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_prose_is_too_long(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    prose = {number for number, _ in words.prose_of_markdown("\n".join(lines))}
    long = [f"{number}: {lines[number - 1]}" for number in prose if len(lines[number - 1]) > LINE]
    assert not [line for line in long if not line.partition(": ")[2].startswith("|")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_to_a_heading(document: Path) -> None:
    dead = []
    for target in links(document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        if not file.exists() or (anchor and anchor not in headings(file.read_text(encoding="utf-8"))):
            dead.append(target)
    assert not dead


def links(text: str) -> Iterator[str]:
    """Targets of Markdown links and pictures that are files of ours; what looks like one within code is none."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target:
            yield target


def headings(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
