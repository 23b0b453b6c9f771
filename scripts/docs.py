"""Writes what the documents repeat from the code.

docs/tree.md: the file tree; docs/commands.md: options and exit codes; docs/architecture.md: defaults; docs/gateway.md and
docs/operating.md: metrics; docs/protocol.md: calls, refusals and messages; docs/benchmarks.md and README: the published benchmark;
docs/*.svg: the picture and the plots.

A file says what it is in its first line and a default says what it means in the line below it; the documents copy both,
so that they cannot drift. `tests/test_layers.py` compares.

Run: .venv/bin/python scripts/docs.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import bench
import picture
from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import protocol_page  # noqa: E402

from node import metrics  # noqa: E402
from node.cli import app as commands  # noqa: E402
from node.cli.flags import surface  # noqa: E402
from swarm import measured, timings  # noqa: E402

FOLDERS = ("protocols", "swarm", "node", "scripts")
DEFAULTS = Path("protocols/defaults.py")
FAILURES = Path("node/cli/failures.py")


# --- the file tree


def present_files() -> list[Path]:
    """What is in the four folders and git does not ignore, relative to the root; so a new file counts before its commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in sorted(set(listed.split("\0"))) if name and (ROOT / (path := Path(name))).exists()]


def caption(path: Path) -> str:
    """The first sentence of a file: of its docstring, or of the comment below its `#!` line; "" where it has none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        comments = [line.removeprefix("#").strip() for line in text.splitlines()[:3] if line.startswith("# ")]
        first = comments[0] if comments else ""
    return first.partition(". ")[0].rstrip(".")


def tree(files: list[Path]) -> str:
    """Folders from the ground up, files before folders; a package's caption is its `__init__.py`'s first line."""
    lines, shown = [], set[Path]()
    for path in sorted(files, key=lambda path: (FOLDERS.index(path.parts[0]), path.parts[:-1], path.name)):
        for folder in reversed(path.parents[:-1]):
            if folder not in shown:
                shown.add(folder)
                package = folder / "__init__.py"
                lines.append(_tree_line(folder, f"{folder.name}/", caption(package) if package in files else ""))
        if path.name != "__init__.py":
            lines.append(_tree_line(path, path.name, caption(path)))
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _tree_line(path: Path, name: str, text: str) -> str:
    return f"{'  ' * (len(path.parts) - 1) + name:<26} {text}".rstrip()


# --- the table of defaults


def defaults() -> Iterator[tuple[str, str, str]]:
    """(name, value, meaning) of every constant; its meaning is the text on the line below it, where there is one."""
    body = ast.parse((ROOT / DEFAULTS).read_text(encoding="utf-8")).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            meaning = str(below.value.value) if is_text else ""  # type: ignore[union-attr]
            yield node.target.id, ast.unparse(node.value), " ".join(meaning.split())


def defaults_table() -> str:
    """Markdown: one table row per constant."""
    rows = [f"| `{name}` | `{value}` | {meaning.replace('|', chr(92) + '|')} |" for name, value, meaning in defaults()]
    return "| name | value | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


# --- the exit codes


def exit_codes_table() -> str:
    """Markdown: the literal dictionary EXIT_CODES of the command line, read without importing it."""
    for node in ast.parse((ROOT / FAILURES).read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "EXIT_CODES"
            and node.value
        ):
            codes: dict[int, str] = ast.literal_eval(node.value)
            return "| code | meaning |\n|---|---|\n" + "".join(f"| {code} | {meaning} |\n" for code, meaning in codes.items())
    raise ValueError(f"no EXIT_CODES in {FAILURES}")


# --- the options


def options_table() -> str:
    """Markdown: one table row per flag, with its variable, its key and the commands that have it."""
    rows: dict[str, list[surface.Option]] = {}
    for option in surface.options(commands.app):
        rows.setdefault(option.flag, []).append(option)
    lines = []
    for flag, found in rows.items():
        where = ", ".join(dict.fromkeys(" ".join(option.command) or "all" for option in found))
        usual = ", ".join(
            dict.fromkeys(
                f"`{option.default}`" for option in found if option.default not in (None, "", []) and option.default is not False
            )
        )
        lines.append(f"| `{flag}` | `{found[0].variable}` | `{found[0].key}` | {where} | {usual} | {meaning(found)} |")
    return "| flag | variable | key | commands | default | meaning |\n|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"


def meaning(found: list[surface.Option]) -> str:
    """What a flag means; if its commands say it differently, each text with its commands in front."""
    commands: dict[str, list[str]] = {}
    for option in found:
        commands.setdefault(option.help, []).append(" ".join(option.command))
    texts = [text if len(commands) == 1 else f"*{', '.join(names)}*: {text}" for text, names in commands.items()]
    return " ".join(texts).replace("|", chr(92) + "|")


# --- the parts of a request's time


def stages_table(stages: Mapping[str, str]) -> str:
    """Markdown: T1 to T9, or G1 to G9."""
    return "| | what |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in stages.items())


# --- putting them in


def replace_part(document: str, name: str, content: str) -> str:
    """The document with `content` between the marks of part `name`; ValueError if they are missing."""
    start, stop = f"<!-- {name}: written by scripts/docs.py -->\n", f"<!-- end of {name} -->"
    before, found_start, rest = document.partition(start)
    _old, found_stop, after = rest.partition(stop)
    if not found_start or not found_stop:
        raise ValueError(f"no part {name!r}: expected the lines {start!r} and {stop!r}")
    return before + start + content + stop + after


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the parts of the documents that repeat the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 and name the documents that are old")
    is_check = parser.parse_args().check
    result, trained, served = (json.loads(bench.result_file(name).read_text(encoding="utf-8")) for name in bench.SECTIONS)
    old: list[str] = []
    drawings = {
        bench.result_file("inference").with_name(f"{name}.svg"): text for name, text in report.plots(result["sections"]).items()
    }
    for path, drawing in {**drawings, picture.FILE: picture.route()}.items():
        if not path.exists() or path.read_text(encoding="utf-8") != drawing:
            old.append(str(path.relative_to(ROOT)))
            if not is_check:
                path.write_text(drawing, encoding="utf-8")
    for document, name, content in (
        ("README.md", "speed", report.short({**result, "sections": result["sections"] | trained["sections"]})),
        ("docs/tree.md", "tree", tree(present_files())),
        ("docs/benchmarks.md", "inference", report.page(result)),
        ("docs/benchmarks.md", "training", report.page(trained)),
        ("docs/benchmarks.md", "gateway", report.page(served)),
        ("docs/architecture.md", "defaults", defaults_table()),
        ("docs/commands.md", "options", options_table()),
        ("docs/commands.md", "exit codes", exit_codes_table()),
        ("docs/gateway.md", "metrics", metrics.table(metrics.GATEWAY)),
        ("docs/protocol.md", "calls", protocol_page.methods_table()),
        ("docs/protocol.md", "refusals", protocol_page.errors_table()),
        ("docs/protocol.md", "messages", protocol_page.messages_text()),
        ("docs/gateway.md", "stages", stages_table(timings.STAGES)),
        ("docs/operating.md", "gradient stages", stages_table(measured.GRADIENT_STAGES)),
        ("docs/operating.md", "node metrics", metrics.table(metrics.PEER)),
    ):
        text = (ROOT / document).read_text(encoding="utf-8")
        if (new := replace_part(text, name, content)) != text:
            old.append(document)
            if not is_check:
                (ROOT / document).write_text(new, encoding="utf-8")
    if old and is_check:
        print(f"old: {', '.join(old)}; write them anew: .venv/bin/python scripts/docs.py", file=sys.stderr)
    return 1 if old and is_check else 0


if __name__ == "__main__":
    raise SystemExit(main())
