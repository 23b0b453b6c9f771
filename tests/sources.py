"""The project's Python files, each parsed once."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("protocols", "swarm", "node")
"""From the ground up: each may import itself and those before it."""


def tracked(*folders: str) -> list[Path]:
    """The Python files that are here and that git does not ignore, so that a new file is judged before it is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return sorted(Path(name) for name in set(listed.split("\0")) if name.endswith(".py") and (ROOT / name).exists())


@cache
def tree_of(path: Path) -> ast.Module:
    """Of a file, relative to the root."""
    return ast.parse((ROOT / path).read_text())


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's."""
    return tuple(ast.walk(tree_of(path)))


def called(node: ast.Call) -> str:
    """The dotted name of what is called; "" if it is no name."""
    names, at = [], node.func
    while isinstance(at, ast.Attribute):
        names.append(at.attr)
        at = at.value
    return ".".join(reversed([*names, at.id])) if isinstance(at, ast.Name) else ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands; a relative one is reported as such."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
