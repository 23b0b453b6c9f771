"""Builds the documents as a site, without a network.

README, CONTRIBUTING and CHANGELOG become pages beside those of docs/, and links to other files of the checkout become plain text. Then
mkdocs builds `site/`; it is strict: a link or an anchor that leads nowhere, or a page outside the navigation, fails. At last every page is
looked through for anything that a browser would fetch from elsewhere.

Run: .venv/bin/python scripts/site.py [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALSO = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside docs/ -> their page."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```|~~~)")


def page_of(target: str, folder: Path) -> str | None:
    """The page of a link's target, as it stands in a document of `folder`; None: a file that has none."""
    path, mark, anchor = target.partition("#")
    if not path:
        return target
    found = (folder / path).resolve()
    if not found.is_relative_to(ROOT):
        return None
    name = str(found.relative_to(ROOT))
    own = ALSO.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else None)
    return own and own + mark + anchor


def rewritten(text: str, folder: Path) -> str:
    """A document whose links lead to pages of the site."""
    lines, in_code = [], False
    for line in text.splitlines(keepends=True):
        in_code ^= bool(CODE.match(line.lstrip()))
        lines.append(line if in_code else LINK.sub(lambda found: _link(found, folder), line))
    return "".join(lines)


def _link(found: re.Match[str], folder: Path) -> str:
    mark, text, target = found.groups()
    if re.match(r"[a-z]+:", target):
        return found[0]
    page = page_of(target, folder)
    return text if page is None else f"{mark}[{text}]({page})"


def collect(out: Path) -> None:
    """All pages, and what they show."""
    shutil.copytree(ROOT / "docs", out)
    for path in out.glob("*.md"):
        path.write_text(rewritten(path.read_text(encoding="utf-8"), ROOT / "docs"), encoding="utf-8")
    for name, page in ALSO.items():
        (out / page).write_text(rewritten((ROOT / name).read_text(encoding="utf-8"), ROOT), encoding="utf-8")


class Fetched(HTMLParser):
    """What a browser fetches for a page, links that a person follows left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        wanted = given.get("src")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            wanted = given.get("href")
        if wanted is not None:
            self.found.append(wanted)


def fetched_elsewhere(site: Path) -> list[str]:
    """`PAGE: URL` of each thing that would come from another machine."""
    found = []
    for page in sorted(site.rglob("*.html")):
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(site)}: {url}" for url in parser.found if re.match(r"([a-z]+:)?//", url)]
    for style in sorted(site.rglob("*.css")):
        urls = re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: {url}" for url in urls]
    return found


def build(out: Path) -> int:
    """0, or 1 after saying what is wrong."""
    with tempfile.TemporaryDirectory(prefix="murmuration-site-") as folder:
        source, config = Path(folder) / "source", Path(folder) / "mkdocs.yml"
        collect(source)
        text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        text = text.replace("docs_dir: build/site_source", f"docs_dir: {source}").replace("site_dir: site", f"site_dir: {out}")
        config.write_text(text)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # material's word on its successor
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"site: mkdocs refuses the pages:\n{done.stdout}{done.stderr}", file=sys.stderr)
        return 1
    if elsewhere := fetched_elsewhere(out):
        print("site: browsers would fetch from elsewhere:\n" + "\n".join(elsewhere), file=sys.stderr)
        return 1
    print(f"site: {len(list(out.rglob('*.html')))} pages in {out}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/site.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="where the site goes (default: %(default)s)")
    return build(parser.parse_args().out.resolve())


if __name__ == "__main__":
    raise SystemExit(main())
