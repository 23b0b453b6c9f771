"""The grammar of calls that are laid out by marks: `Layout`.

Rules of llguidance's Lark, as `call_grammar.py` puts them together. Marks that are tokens of their own come as these tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from protocols.errors import ModelNotSupportedError
from swarm.thin.grammar.answer_form import CallRules, Layout, OfferedCall, properties_of, texts_of
from swarm.thin.grammar.marks import json_rule, literal

PLACES = {"#": "/[0-9]{1,3}/", "@": "/[a-zA-Z0-9]{9}/"}

KNOWN = frozenset({
    "type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description", "$schema", "x-guidance",
})  # fmt: skip
"""What a strict schema of arguments may say as a whole."""

OF_TEXTS = frozenset({"pattern", "format", "minLength", "maxLength"})
"""What a strict schema of a text may not say: it is written as it stands."""

KEY = re.compile(r"[^<>\n]{1,256}")


def check_known(schema: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    """ValueError if a strict schema says of the arguments as a whole what cannot be kept to one by one."""
    if properties and (odd := schema.keys() - KNOWN):
        raise ValueError(f"in calls of this model's form, arguments cannot be kept to {', '.join(sorted(odd))}")


class LayoutRules:
    """`lines` are rules that make `calls`, and `body`: calls without the mark at which they begin."""

    def __init__(self, rules: CallRules, added: Mapping[str, int]) -> None:
        layout = rules.form.layout
        assert layout is not None
        self._layout: Layout = layout
        self._form, self._added = rules.form, {mark: added[mark] for mark in rules.form.marks if mark in added}
        tools = [f"tool_{number}" for number in range(len(rules.tools))]
        self.lines = [f"one: {' | '.join(tools)}"]
        for name, tool in zip(tools, rules.tools, strict=True):
            self.lines += self._tool(name, tool)
        is_list = (rules.form.is_section or not rules.form.end) and not rules.form.is_channels
        more = "" if rules.is_single or not is_list else f" ({self._literal(layout.separator)} one)*"
        self.lines += [f"body: one{more} {self._literal(rules.form.end)}", f"call: {self._literal(rules.form.begin)} body"]
        is_one = rules.is_single or is_list or rules.form.is_channels
        self.lines += ["calls: call" + ("" if is_one else r' ("\n" call)*')]
        self.lines += self._text() if layout.value else []

    def _text(self) -> list[str]:
        """`text`: a text as it stands, and what ends it: it has neither that mark nor the one that ends calls."""
        before, mark, after = self._layout.end.rpartition(self._layout.end.strip())
        others = [re.escape(one).replace("/", r"\/") for one in (mark if mark in self._added else "", self._form.end) if one]
        value = " & ".join([r"/(.|\n)*/", *(rf"~/(.|\n)*{one}(.|\n)*/" for one in others)])
        if mark in self._added:
            return [f"TEXT_VALUE: {value}", f"text: TEXT_VALUE {self._literal(before + mark + after)}"]
        return [
            f"TEXT_VALUE: {value}",
            f"spelled_end[lazy]: TEXT_VALUE {json.dumps(mark)}",
            f"text: spelled_end {self._literal(after)}",
        ]

    def _tool(self, name: str, tool: OfferedCall) -> Iterator[str]:
        layout, schema = self._layout, json.loads(tool.schema)
        head, close = (
            self._literal(layout.open) + f" {json.dumps(tool.name)} " + self._literal(layout.between),
            self._literal(layout.close),
        )
        if not layout.value:
            yield f"{name}: {head} %json {json_rule(schema)} {close}"
            return
        properties, required = properties_of(schema), schema.get("required", [])
        is_strict = not schema.get("x-guidance", {}).get("lenient")
        if is_strict:
            check_known(schema, properties)
        parts = []
        for number, (key, value) in enumerate(properties.items()):
            if not KEY.fullmatch(key):
                raise ModelNotSupportedError(f"this model's calls have no argument called {key!r}")
            yield f"{name}_{number}: {self._argument(key, value, is_strict)}"
            parts.append(f"{name}_{number}" + ("" if key in required else "?"))
        if not properties and schema.get("additionalProperties") is not False:
            yield f"{name}_any: {self._literal(layout.key)} /{KEY.pattern}/ {self._literal(layout.value)} text"
            parts.append(f"{name}_any*")
        yield f"{name}: {head} {' '.join(parts)} {close}"

    def _argument(self, key: str, schema: Mapping[str, Any], is_strict: bool) -> str:
        texts, end = texts_of(schema), self._literal(self._layout.end)
        if texts is None:
            value = f"%json {json_rule(schema)} {end}"
        elif texts:
            value = f"({' | '.join(map(json.dumps, texts))}) {end}"
        elif is_strict and (odd := schema.keys() & OF_TEXTS):
            raise ValueError(f"in calls of this model's form, texts cannot be kept to {', '.join(sorted(odd))}")
        else:
            value = "text"
        return f"{self._literal(self._layout.key)} {json.dumps(key)} {self._literal(self._layout.value)} {value}"

    def _literal(self, text: str) -> str:
        return literal(text, self._added, PLACES)
