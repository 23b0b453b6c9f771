"""The documents build as a site whose links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    """scripts/site.py, which has the name of a module that Python has loaded long ago."""
    spec = importlib.util.spec_from_file_location("murmuration_site", ROOT / "scripts/site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = load()


def test_the_site_builds_with_a_page_for_each_document_and_a_search(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "scripts/site.py", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in tmp_path.glob("*.html")} - {"404"}
    assert pages == {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog"}
    found = json.loads((tmp_path / "search/search_index.json").read_text())["docs"]
    assert len(found) > 100 and any("Server-Timing" in one["text"] for one in found)
    assert 'href="operating.html' in (tmp_path / "index.html").read_text()  # README's link to docs/operating.md


@pytest.mark.parametrize("line", ["[x](nowhere.md)", "[x](host.md#no-such-part)", "[x](/absolute.md)"])
def test_a_link_that_leads_nowhere_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    collect = SITE.collect

    def with_link(out: Path) -> None:
        collect(out)
        page = out / "faq.md"
        page.write_text(f"{page.read_text()}\n{line}\n")

    monkeypatch.setattr(SITE, "collect", with_link)
    assert SITE.build(tmp_path / "site") == 1


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://example.org/a.png">',
        '<link rel="preconnect" href="https://fonts.example">',
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_found(tmp_path: Path, text: str) -> None:
    ours = '<a href="https://example.org">a person follows this</a><script src="own.js"></script>'
    (tmp_path / "page.html").write_text(ours + text)
    assert len(SITE.fetched_elsewhere(tmp_path)) == 1
    (tmp_path / "style.css").write_text("@import url(https://example.org/a.css); b { background: url('own.png') }")
    assert len(SITE.fetched_elsewhere(tmp_path)) == 2


@pytest.mark.parametrize(
    ("folder", "line", "expected"),
    [
        ("", "[a](docs/gateway.md#metrics) ![b](docs/route.svg)", "[a](gateway.md#metrics) ![b](route.svg)"),
        ("", "[a](CONTRIBUTING.md), [the licence](LICENSE)", "[a](contributing.md), the licence"),
        ("docs", "[a](../README.md), [b](log.md), [c](../deploy/grafana/murmuration.json)", "[a](index.md), [b](log.md), c"),
        ("docs", "[a](https://example.org/docs/x.md), [b](#here), `c`", "[a](https://example.org/docs/x.md), [b](#here), `c`"),
        ("docs", "[a](../../etc/passwd)", "a"),
        ("docs", "```\n[a](../README.md)\n```\n[a](../README.md)", "```\n[a](../README.md)\n```\n[a](index.md)"),
    ],
)
def test_links_lead_to_pages_and_those_to_other_files_are_text(folder: str, line: str, expected: str) -> None:
    assert SITE.rewritten(line, ROOT / folder) == expected
