"""Lists words of this project's private language that are left.

Each comes with the plain one.

Prose is searched for the patterns of `WORDS`: Markdown without code and generated parts; docstrings, comments and messages of Python.
Names of classes, functions and files are searched for `NAMES`. `CLEAN` are the files that must have none of either: all.

First lines of files are short in the folders of `SHORT_FIRST_LINES`.

Run: scripts/words [--check] [PATH …]; --check looks at the files in CLEAN only, and exits 1 if it finds a word.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "docs", "protocols", "swarm", "node", "scripts", "tests")
OWN = ("scripts/words.py", "tests/test_words.py")
"""These name the words because they are about them."""

CLEAN = FOLDERS
"""Files and folders (as git reads paths) without such words: all."""

SHORT_FIRST_LINES = ("protocols", "swarm", "node", "scripts", "tests")
"""Folders whose files say what they are in a first line of at most MAX_FIRST_LINE words: all with code."""

MAX_FIRST_LINE = 12
"""Words of a file's first line."""

WORDS: tuple[tuple[str, str], ...] = (
    (r"tapes?|taped", "captured graph"),
    (r"play(s|ed|ing)?", "replay"),
    (r"recorders?", "capture"),
    (r"practi[sc](e|es|ed|ing)", "warm up"),
    (r"lessons?", "capture"),
    (r"learn(s|t|ed|ing)?(?! (positions|rate))", "calibrate"),
    (r"(?<!matrix )products?", "linear kernels, matrix products"),
    (r"ways? (of multiplying|to multiply)", "linear kernel"),
    (r"(?<!/)(?<!matrix )(?<!batch )(?<!table )rows?(?!-major| (operation|or column))", "sequence"),
    (r"(?!^)(?<!prefill )chunks?", "prefill chunk"),  # at the beginning of a line, "prefill" may be on the line before
    (r"pieces? of (a|the|its|one) (prompt|step)s?", "prefill chunk"),
    (r"the ends(?! of the)|(model's|hosts?|hosted|hosting) ends|ends of (a|the) model", "embedding and head"),
    (r"wires", "message streams"),
    (r"doors?", "dispatcher"),
    (r"errands?|seats?|lent", "(gone with the mechanism)"),
    (r"passages?", "process_step"),
    (r"waves?", "pipelined batches"),
    (r"(whose|its|his|their|own) turns?|turns? of the (event )?loop", "schedule"),
    (r"rhythms?", "inter-arrival time"),
    (r"(is|are|was|were) away|time away", "batching delay, thinking time of the client"),
    (r"(?<!['-])patience", "route timeout"),
    (r"rooms?", "capacity, memory; a folder is a folder"),
    (r"standing", "claim"),
    (r"greet(s|ed|ing|ings)?", "hello"),
    (r"towns?|nurser(y|ies)|zygotes?|murder(s|ed)?|dice", "test swarm, process pool, fork server, kill, rng"),
    (r"strangers?", "untrusted peer"),
    (r"whoever|whomever|nobody|somebody|everybody|anybody", "name the object"),
    (r"forgotten all code|lives on|at most most|by its own word|without a word", "say it plainly"),
)
"""(pattern of whole words, plain words). Source: the table of words in the redesign, section 5."""

NAMES: tuple[tuple[str, str], ...] = (
    (r"tapes?|Tapes?|Taped", "graph"),
    (r"[Rr]ecorder", "capture"),
    (r"practise\w*|Lesson|lesson", "warm_up, capture"),
    (r"[Pp]roducts", "linear_kernels"),
    (r"Wire", "MessageStream"),
    (r"doors|Doors", "dispatcher"),
    (r"Begun|begun|Errand|Seat", "(gone with the mechanism)"),
    (r"Ask|Asked|Asking|Passed|passage", "StepSpec, result, process_step"),
    (r"[Ww]aves?|[Rr]hythm|away_s", "pipelined batches, inter-arrival time, batching delay"),
    (r"CONTINUED|continued", "after_first"),
    (r"patience_s|PATIENCE_S", "route_timeout_s"),
    (r"[Rr]oom|room_blocks|[Ss]tanding", "capacity, claim"),
    (r"finding|greeting|dialling_back", "bootstrap, hello, reachability"),
    (r"[Tt]own|[Nn]ursery|[Zz]ygote|[Mm]urder|[Dd]ice", "test swarm, process pool, fork server, kill, rng"),
    (r"choosing", "sampling (tokens), placement (blocks)"),
    (r"[Ss]trangers?", "untrusted"),
)
"""(pattern of a whole identifier or of a file's stem, the name to use)."""

ALLOWED: dict[tuple[str, str], str] = {
    ("swarm/client/model.py", "patience_s"): "a keyword argument of the public surface",
}
"""(file, name) that stays, and why."""


_ANY_WORD = re.compile(rf"\b(?:{'|'.join(f'(?:{pattern})' for pattern, _ in WORDS)})\b", re.IGNORECASE)
"""Is there any? Most lines have none, and one pattern is quicker than all of them one after the other."""


@dataclass(frozen=True, slots=True)
class Found:
    """One word in one place."""

    path: Path
    line: int
    word: str
    plain: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word} -> {self.plain}"


def prose_of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of what a person wrote: no fenced code, no `code`, no targets of links, no generated part."""
    is_code = is_generated = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif re.match(r"<!-- .*written by scripts/", line):
            is_generated = True
        elif line.startswith("<!-- end of "):
            is_generated = False
        elif not is_code and not is_generated:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line)


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of comments and of strings that hold a blank, docstrings first of all; no `code` and no {fields}."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_message = token.type == tokenize.STRING and " " in token.string
        if token.type == tokenize.COMMENT or is_message or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            code = r"`[^`]*`|\{[^{}]*\}" if re.match(r"[rR]?[fF]", token.string) else r"`[^`]*`"
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(code, " ", line)


def names_of_python(text: str) -> Iterator[tuple[int, str]]:
    """(line number, name) of what a file defines: classes, functions, arguments, and names that are assigned."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def search(path: Path, text: str) -> Iterator[Found]:
    """Every word of the tables in one file; `path` is relative to the root."""
    is_python = path.suffix == ".py"
    prose = prose_of_python(text) if is_python else prose_of_markdown(text)
    for number, line in prose:
        for pattern, plain in WORDS if _ANY_WORD.search(line.strip()) else ():
            for match in re.finditer(rf"\b(?:{pattern})\b", line.strip(), re.IGNORECASE):
                yield Found(path, number, match[0].lower(), plain)
    if is_python:
        for number, name in [(1, path.stem), *names_of_python(text)]:
            for plain in _plain_names(name.lstrip("_")):
                if (str(path), name) not in ALLOWED:
                    yield Found(path, number, name, plain)


@cache
def _plain_names(name: str) -> tuple[str, ...]:
    """What to use instead of a name; empty if it may stay."""
    return tuple(plain for pattern, plain in NAMES if re.fullmatch(pattern, name))


def long_first_lines(paths: Sequence[str]) -> list[str]:
    """Python files below `paths` whose first line has too many words, with that line."""
    firsts = {
        path: (ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "")
        for path in files(paths)
        if path.suffix == ".py"
    }
    lines = {path: text.partition("\n")[0] for path, text in firsts.items()}
    return [f"{path}: {line}" for path, line in lines.items() if len(line.split()) > MAX_FIRST_LINE]


def files(paths: Sequence[str]) -> list[Path]:
    """Markdown and Python files below `paths` that git does not ignore, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    names = sorted(name for name in set(listed.split("\0")) if name.endswith((".md", ".py")))
    return [Path(name) for name in names if (ROOT / name).exists() and name not in OWN]


def main() -> int:
    parser = argparse.ArgumentParser(description="List words of this project's private language, with the plain ones.")
    parser.add_argument("--check", action="store_true", help="only the files that must have none; exit 1 if there is one")
    parser.add_argument("paths", nargs="*", default=FOLDERS, metavar="PATH", help="files and folders (default: all)")
    arguments = parser.parse_args()
    paths = CLEAN if arguments.check else arguments.paths
    found = [each for path in files(paths) for each in search(path, (ROOT / path).read_text(encoding="utf-8"))]
    for each in found:
        print(each)
    long = long_first_lines(SHORT_FIRST_LINES if arguments.check else arguments.paths)
    for line in long:
        print(f"more than {MAX_FIRST_LINE} words: {line}")
    counts = ", ".join(f"{word} {number}" for word, number in Counter(each.word for each in found).most_common())
    print(f"{len(found)} words in {len({each.path for each in found})} files" + (f": {counts}" if counts else ""))
    return 1 if (found or long) and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
