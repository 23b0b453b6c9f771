"""Calls of tools, in the form of the model's template.

A model writes a call as text. Each family has its own marks for it, which its chat template shows. What has the marks of a call and is
none, or calls a tool that was not offered, stays text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.gateway.tools import call_layout, python_calls
from node.gateway.tools.call_layout import Tools, read_json
from node.gateway.tools.depth import is_deep
from swarm.thin.grammar.answer_form import CallForm

LETTER = re.compile(r"\S")
LETTERS = string.ascii_letters + string.digits
ID_LETTERS = 9
"""Mistral's templates take ids of exactly so many letters and digits, and others take any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the model wants to be called."""

    name: str
    arguments: Mapping[str, Any]
    number: str
    """Its id, in every API."""

    @property
    def text(self) -> str:
        """The arguments as JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)


class CallFinder:
    """Splits one answer into text and calls, as it comes: `feed` for each piece, `rest` at its end."""

    def __init__(self, form: CallForm, tools: Tools) -> None:
        self._form, self._tools = form, tools
        self._held = ""
        self._num_seen = 0
        """Letters of a call that has begun, in which its end does not begin."""

        self._is_plain = False
        """No call can come any more."""

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """What is certain now."""
        self._held += text
        if self._is_plain:
            yield from self._all()
        elif self._form.end or self._form.layout is not None:
            yield from self._marked()
        elif (first := LETTER.search(self._held)) is not None and first[0] not in self._form.firsts:
            self._is_plain = True
            yield from self._all()

    def rest(self) -> Iterator[str | ToolCall]:
        """What was held back."""
        lead = self._form.begin if self._form.layout is not None else ""
        is_whole = not self._form.end and not self._is_plain and self._held.startswith(lead)
        calls = calls_in(self._held.removeprefix(lead), self._tools, self._form) if is_whole else None
        if calls is None:
            yield from self._all()
        else:
            yield from calls

    def _all(self) -> Iterator[str]:
        text, self._held = self._held, ""
        if text:
            yield text

    def _marked(self) -> Iterator[str | ToolCall]:
        begin, end = self._form.begin, self._form.end
        while (start := self._held.find(begin)) >= 0:
            before, self._held = self._held[:start], self._held[start:]
            if before:
                yield before
            stop = self._held.find(end, self._num_seen) if end else -1
            if stop < 0:
                self._num_seen = max(len(self._held) - len(end), 0)
                return
            self._num_seen = 0
            whole, self._held = self._held[: stop + len(end)], self._held[stop + len(end) :]
            calls = calls_in(whole[len(begin) : -len(end)], self._tools, self._form)
            yield from [whole] if calls is None else calls
        keep = next((size for size in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:size])), 0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        if certain:
            yield certain


def calls_in(text: str, tools: Tools, form: CallForm) -> list[ToolCall] | None:
    """The calls that a text consists of; None if it is anything else."""
    try:
        every = list(_pairs(text, tools, form))
    except (ValueError, RecursionError):
        return None
    calls = [call for name, arguments in every if (call := call_of(name, arguments, tools)) is not None]
    return calls if calls and len(calls) == len(every) else None


def _pairs(text: str, tools: Tools, form: CallForm) -> Iterator[tuple[object, object]]:
    """Names and arguments."""
    if form.layout is not None:
        return call_layout.calls_in(text, tools, form.layout)
    is_python = form.or_python and text.lstrip().startswith("[")
    return python_calls.calls_in(text) if is_python else _objects(text, form.name)


def _objects(text: str, name: str) -> Iterator[tuple[object, object]]:
    found = read_json(text)
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, dict):
            raise ValueError("a call is an object")
        yield one.get(name), one.get("arguments", one.get("parameters", {}))


def call_of(name: object, arguments: object, tools: Tools) -> ToolCall | None:
    """None if that is no call of a tool that was offered."""
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict) or is_deep(arguments):
        return None
    return ToolCall(name=name, arguments=arguments, number="".join(secrets.choice(LETTERS) for _ in range(ID_LETTERS)))


def tools_of(offers: Sequence[Mapping[str, Any]]) -> Tools:
    """From what OpenAI's API calls functions."""
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in offers}
