"""Draws README's file tree: every file of the three packages and of scripts/, captioned with its own first line.

A file says what it is in its first line; README repeats it, so the two cannot drift. `tests/test_layers.py` compares.

Run: .venv/bin/python scripts/tree.py [--write]
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("protocols", "swarm", "node", "scripts")
START, STOP = "<!-- tree: scripts/tree.py --write -->\n```text\n", "```\n<!-- end of tree -->"


def tracked_files() -> list[Path]:
    """What git tracks in the four folders, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *FOLDERS], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    return sorted(path for name in listed.split("\0") if name and (ROOT / (path := Path(name))).exists())


def caption(path: Path) -> str:
    """The first sentence of a file: of its docstring, or of the comment below its `#!` line; "" where it has none."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        comments = [line.removeprefix("#").strip() for line in text.splitlines()[:3] if line.startswith("# ")]
        first = comments[0] if comments else ""
    return first.partition(". ")[0].rstrip(".")


def draw(files: list[Path]) -> str:
    """Folders before their files, two spaces a level; a package's caption is its `__init__.py`'s first line."""
    lines, shown = [], set[Path]()
    for path in sorted(files, key=lambda path: (FOLDERS.index(path.parts[0]), path.parts[:-1], path.name)):
        for folder in reversed(path.parents[:-1]):
            if folder not in shown:
                shown.add(folder)
                package = folder / "__init__.py"
                lines.append(_line(folder, f"{folder.name}/", caption(package) if package in files else ""))
        if path.name != "__init__.py":
            lines.append(_line(path, path.name, caption(path)))
    return "".join(f"{line}\n" for line in lines)


def _line(path: Path, name: str, text: str) -> str:
    return f"{'  ' * (len(path.parts) - 1) + name:<26} {text}".rstrip()


def replace_tree(readme: str, tree: str) -> str:
    """README with the tree between its two marks; ValueError where they are missing."""
    before, start, rest = readme.partition(START)
    _old, stop, after = rest.partition(STOP)
    if not start or not stop:
        raise ValueError(f"README.md has no tree between {START.splitlines()[0]!r} and {STOP.splitlines()[-1]!r}")
    return before + start + tree + stop + after


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw README's file tree from the first line of every file.")
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    tree = draw(tracked_files())
    if not parser.parse_args().write:
        print(tree, end="")
        return 0
    readme = ROOT / "README.md"
    readme.write_text(replace_tree(readme.read_text(), tree))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
