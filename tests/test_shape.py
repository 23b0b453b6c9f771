"""How long functions, argument lists, classes and files may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.sources import LAYERS, ROOT, nodes_of, tracked

MAX_PARAMETERS = 8
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 200
MAX_FILE_LINES = 400

EXCEPTIONS: dict[str, str] = {
    "swarm/client/model.py:from_pretrained": "what users type, as transformers has it; most of its lines say what each argument means",
    "swarm/thin/model.py:open_model": "what users type",
}
"""`file:name` that is longer, or takes more -> why."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def num_parameters(function: Function) -> int:
    """Without `self`, and without `*args` and `**kwargs`."""
    own = function.args
    return len([one for one in (*own.posonlyargs, *own.args, *own.kwonlyargs) if one.arg not in ("self", "cls")])


def num_lines(node: Function | ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def too_long(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:name`, what is too much) of a file."""
    if (num := len((ROOT / path).read_text().splitlines())) > MAX_FILE_LINES:
        yield str(path), f"{num} lines, of {MAX_FILE_LINES}"
    for node in nodes_of(path):
        if isinstance(node, Function) and (num := num_parameters(node)) > MAX_PARAMETERS:
            yield f"{path}:{node.name}", f"{num} parameters, of {MAX_PARAMETERS}: a dataclass is missing"
        if isinstance(node, Function) and (num := num_lines(node)) > MAX_FUNCTION_LINES:
            yield f"{path}:{node.name}", f"{num} lines, of {MAX_FUNCTION_LINES}"
        if isinstance(node, ast.ClassDef) and (num := num_lines(node)) > MAX_CLASS_LINES:
            yield f"{path}:{node.name}", f"{num} lines, of {MAX_CLASS_LINES}"


def test_what_is_too_long_is_split_or_has_its_reason() -> None:
    found = {name: what for path in tracked(*LAYERS, "scripts") for name, what in too_long(path)}
    without = {name: what for name, what in found.items() if name not in EXCEPTIONS}
    assert not without, f"{without}: split them, or say in EXCEPTIONS why not"
    idle = EXCEPTIONS.keys() - found.keys()
    assert not idle, f"{idle} are shorter now: take them out of EXCEPTIONS"
