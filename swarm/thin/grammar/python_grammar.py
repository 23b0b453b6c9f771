"""The grammar of calls as Python writes them: `f(a=1, b="x")`.

Rules of llguidance's Lark, as `call_grammar.py` puts them together. Values are JSON: what `node/gateway/tools/python_calls.py` reads has
both spellings of true, false and none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocols.errors import ModelNotSupportedError
from swarm.thin.grammar.answer_form import OfferedCall, properties_of
from swarm.thin.grammar.layout_grammar import check_known
from swarm.thin.grammar.marks import json_rule

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")


def python_lines(tools: Sequence[OfferedCall]) -> list[str]:
    """Rules that make `tool_0`, `tool_1` … ModelNotSupportedError for an argument that has no name in Python, ValueError for a strict
    schema that cannot be kept to."""
    return [line for number, tool in enumerate(tools) for line in _tool(f"tool_{number}", tool)]


def _tool(rule: str, tool: OfferedCall) -> Iterator[str]:
    schema = json.loads(tool.schema)
    properties, is_lenient = properties_of(schema), bool(schema.get("x-guidance", {}).get("lenient"))
    if not is_lenient:
        check_known(schema, properties)
    opened = json.dumps(f"{tool.name}(")
    if properties:
        yield f'{rule}: {opened} {rule}_first_0 ")"'
        yield from _arguments(rule, properties, schema.get("required", []), is_lenient)
    elif schema.get("additionalProperties") is False:
        yield f'{rule}: {opened} ")"'
    else:
        yield f'{rule}: {opened} ({rule}_any (", " {rule}_any)*)? ")"'
        yield f'{rule}_any: /{KEY.pattern}/ "=" %json {json_rule({})}'


def _arguments(rule: str, properties: Mapping[str, Any], required: Sequence[str], is_lenient: bool) -> Iterator[str]:
    """In the order of the schema. `first_N`: what may come from argument N on, if nothing has come; `next_N`: if something has."""
    for at, (key, value) in enumerate(properties.items()):
        if not KEY.fullmatch(key):
            raise ModelNotSupportedError(f"this model's calls have no argument called {key!r}")
        bound = {**value, "x-guidance": {"lenient": True}} if is_lenient else value
        yield f"{rule}_{at}: {json.dumps(key + '=')} %json {json_rule(bound)}"
        skip = key not in required
        yield f"{rule}_first_{at}: {rule}_{at} {rule}_next_{at + 1}" + (f" | {rule}_first_{at + 1}" if skip else "")
        yield f'{rule}_next_{at}: ", " {rule}_{at} {rule}_next_{at + 1}' + (f" | {rule}_next_{at + 1}" if skip else "")
    yield f'{rule}_first_{len(properties)}: ""'
    yield f'{rule}_next_{len(properties)}: ""'
