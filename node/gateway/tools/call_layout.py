"""Reads calls that are laid out by marks: `Layout`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

from swarm.thin.grammar.answer_form import Layout, properties_of, texts_of

Tools: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The schema of the arguments, by the name of the tool."""

PLACES = {"\n": r"\n?", "#": r"\d+", "@": r"\w+"}
"""In a layout, as in `Layout`."""

MOST = sys.float_info.max

WORDS = {"True": True, "False": False, "None": None}
"""How Python writes values, which some models do."""


def calls_in(text: str, tools: Tools, layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls that a text consists of; ValueError or RecursionError if it is anything else."""
    head = re.compile(rf"\s*+{_pattern(layout.open)}\s*+([\w.-]++)[ \t]*+{_pattern(layout.between)}\s*+")
    close, separator = (re.compile(rf"\s*+{_pattern(one)}\s*+") for one in (layout.close, layout.separator))
    at = 0
    while True:
        found, at = _next(head, text, at)
        arguments, at = _tagged(text, at, layout, tools.get(found[1], {})) if layout.value else _object(text, at)
        yield found[1], arguments
        at = _next(close, text, at)[1]
        if at == len(text):
            return
        at = _next(separator, text, at)[1]


def read_json(text: str) -> Any:
    """ValueError or RecursionError if it is none, or has NaN or infinity."""
    return json.loads(text, parse_constant=_refuse, parse_float=finite)


def finite(literal: str) -> float:
    """A number; of one that is too large for a float, the largest that is not, since JSON has no infinity."""
    return max(-MOST, min(float(literal), MOST))


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    found, at = json.JSONDecoder(parse_constant=_refuse, parse_float=finite).raw_decode(text, at)
    if not isinstance(found, dict):
        raise ValueError("arguments are an object")
    return found, at


def _tagged(text: str, at: int, layout: Layout, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    key, end = re.compile(rf"\s*+{_pattern(layout.key)}([^<>\n]+){_pattern(layout.value)}"), re.compile(_pattern(layout.end))
    properties, found = properties_of(schema), dict[str, Any]()
    while (one := key.match(text, at)) is not None:
        if (stop := end.search(text, one.end())) is None:
            raise ValueError("an argument does not end")
        found[one[1].strip()] = _value(text[one.end() : stop.start()], properties.get(one[1].strip(), {}))
        at = stop.end()
    return found, at


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    if texts_of(schema) is not None:
        return text
    if text.strip() in WORDS:
        return WORDS[text.strip()]
    try:
        return read_json(text)
    except ValueError:
        return text


def _next(pattern: re.Pattern[str], text: str, at: int) -> tuple[re.Match[str], int]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(f"no call at {at}")
    return found, found.end()


def _pattern(literal: str) -> str:
    return "".join([PLACES.get(letter) or re.escape(letter) for letter in literal])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
