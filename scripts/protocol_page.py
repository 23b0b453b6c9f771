"""Tables of docs/protocol.md, read from protocols/.

A message is a class whose `encode` writes the kind `t`; its fields are those of the class, with the text below each. `scripts/docs.py`
puts the tables in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocols import errors, services
from protocols.bounds import BY_KIND
from protocols.words import counted

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "protocols"


@dataclass(frozen=True)
class Message:
    """One kind of message, as its class declares it."""

    kind: str
    name: str
    file: str
    meaning: str
    fields: tuple[tuple[str, str, str], ...]
    """(name, type, meaning) of each."""
    keys: tuple[str, ...]
    """Of its header, `t` left out."""


def messages() -> list[Message]:
    """All kinds, in the order of `protocols/bounds.py`; ValueError if one has no class."""
    found = {one.kind: one for path in sorted(FOLDER.glob("*.py")) for one in _of_file(path)}
    missing = set(BY_KIND) - set(found)
    if missing:
        raise ValueError(f"no class in protocols/ writes the kinds {sorted(missing)}")
    return [found[kind] for kind in BY_KIND]


def _of_file(path: Path) -> Iterator[Message]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        meaning = _line(ast.get_docstring(node) or "") if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
        if isinstance(node, ast.ClassDef):
            for kind, keys in _written(node):
                yield Message(kind, node.name, path.name, meaning, tuple(_fields(node)), keys)
        elif isinstance(node, ast.FunctionDef) and (made := _kind_and_keys(node, {}, "")):
            yield Message(made[0], node.name, path.name, meaning, (), made[1])


def _written(node: ast.ClassDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The kind that a class writes, and the keys of its header."""
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    own = next((str(one.value.value) for one in node.body if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "KIND"
                and isinstance(one.value, ast.Constant)), "")  # fmt: skip
    for method in methods.values():
        if found := _kind_and_keys(method, methods, own):
            yield found


def _kind_and_keys(node: ast.FunctionDef, methods: dict[str, ast.FunctionDef], own: str) -> tuple[str, tuple[str, ...]] | None:
    """Of the header that a function writes; None if it writes none. own: what `self.KIND` is."""
    keys, kind = list[str](), ""
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "t":
                    kind = str(value.value) if isinstance(value, ast.Constant) else own
                elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                    keys.append(key.value)
                elif key is None and ast.unparse(value) == "self.pack()":
                    keys += (_kind_and_keys(methods["pack"], {}, "?") or ("", _keys_of(methods["pack"])))[1]
        elif isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store) and isinstance(part.slice, ast.Constant):
            keys.append(str(part.slice.value))
    return (kind, tuple(dict.fromkeys(keys))) if kind else None


def _keys_of(node: ast.FunctionDef) -> tuple[str, ...]:
    dicts = [part for part in ast.walk(node) if isinstance(part, ast.Dict)]
    return tuple(key.value for one in dicts for key in one.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    for one, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and "ClassVar" not in ast.unparse(one.annotation):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            yield one.target.id, ast.unparse(one.annotation), _line(str(below.value.value)) if is_text else ""  # type: ignore[union-attr]


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def messages_text() -> str:
    """Markdown: a section for each kind."""
    return "\n".join(_section(one) for one in messages())


def _section(one: Message) -> str:
    limits = BY_KIND[one.kind]
    rows = [f"| `{name}` | `{kind.replace(' | ', ' or ')}` | {meaning} |" for name, kind, meaning in one.fields]
    table = ["", "| field | type | meaning |", "|---|---|---|", *rows] if rows else []
    keys = ", ".join(f"`{key}`" for key in one.keys) or "none but `t`"
    buffers = counted(limits.buffers, "buffer")
    bounds = f"{limits.header_bytes:,} bytes of header, {limits.items:,} values, {limits.lists:,} lists, {buffers}"
    said = f"`{one.name}` in `protocols/{one.file}`. {one.meaning}".rstrip()
    return "\n".join([f"### `{one.kind}`", "", said, *table, "", f"Keys of the header: {keys}. At most {bounds}.", ""])


def methods_table() -> str:
    """Markdown: one line for each RPC."""
    source = (FOLDER / "services.py").read_text(encoding="utf-8")
    said = dict(re.findall(r'Method\(\s*name="(\w+)"[^)]*\)\s*# (.*)', source))
    rows = [
        f"| `{one.path}` | {'stream' if one.streaming else 'one request, one reply'} | {said[one.name].replace('->', '→')} | "
        f"{'yes' if one.is_idempotent else 'no'} | {'' if one.timeout_s is None else f'{one.timeout_s:g} s'} |"
        for one in services.ALL
    ]
    return "| path | form | messages | may be sent again | deadline |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


def errors_table() -> str:
    """Markdown: one line for each refusal that travels."""
    rows = [
        f"| `{code}` | {_line((one.__doc__ or '').partition(chr(10))[0])} | {'yes' if one.try_another_peer else 'no'} | {one.exit_code} |"
        for code, one in sorted(errors.BY_CODE.items())
    ]
    return "| code | meaning | may another peer succeed? | exit code of a command |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
