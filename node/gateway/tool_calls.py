"""Calls of tools, in the form of the model's template.

A model writes a call as text. Each family has its own marks for it, which its chat template shows. What has the marks of a call and is
none, or calls a tool that was not offered, stays text.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from swarm.thin.answer_form import CallForm

LETTERS = string.ascii_letters + string.digits
ID_LETTERS = 9
"""Mistral's templates take ids of exactly so many letters and digits, and others take any."""


FORMS: tuple[tuple[str, CallForm], ...] = (
    ("<tool_call>", CallForm(begin="<tool_call>", end="</tool_call>")),
    ("[TOOL_CALLS]", CallForm(begin="[", mark="[TOOL_CALLS]")),
    ("<|python_tag|>", CallForm(begin="{", key="parameters")),
)
"""What a template has, and what that says: Qwen and Hermes; Mistral, whose mark is no text; Llama 3."""


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


UNKNOWN = ("<function=", "[ARGS]")
"""What a template has whose calls are no JSON between marks, although it may have one of the marks above: Qwen3-Coder, newer Mistrals."""


def form_of(template: str) -> CallForm | None:
    """None: calls of this family are not known here, and stay text."""
    if any(mark in template for mark in UNKNOWN):
        return None
    return next((form for mark, form in FORMS if mark in template), None)


class CallFinder:
    """Splits one answer into text and calls, as it comes: `feed` for each piece, `rest` at its end."""

    def __init__(self, form: CallForm, names: Collection[str]) -> None:
        self._form, self._names = form, names
        self._held = ""
        self._is_plain = False
        """No call can come any more."""

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """What is certain now."""
        self._held += text
        if self._is_plain:
            yield from self._all()
        elif self._form.end:
            yield from self._marked()
        elif self._held.strip() and not self._held.lstrip().startswith(self._form.begin):
            self._is_plain = True
            yield from self._all()

    def rest(self) -> Iterator[str | ToolCall]:
        """What was held back."""
        calls = None if self._form.end or self._is_plain else calls_in(self._held, self._names)
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
            stop = self._held.find(end, start)
            before, self._held = self._held[:start], self._held[start:]
            if before:
                yield before
            if stop < 0:
                return
            whole, self._held = self._held[: stop - start + len(end)], self._held[stop - start + len(end) :]
            calls = calls_in(whole[len(begin) : -len(end)], self._names)
            yield from [whole] if calls is None else calls
        keep = next((size for size in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:size])), 0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        if certain:
            yield certain


def calls_in(text: str, names: Collection[str]) -> list[ToolCall] | None:
    """The calls that a text consists of; None if it is anything else."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    every = found if isinstance(found, list) else [found]
    calls = [call for one in every if (call := _call(one, names)) is not None]
    return calls if calls and len(calls) == len(every) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _call(found: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or found["name"] not in names:
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name=found["name"], arguments=arguments, number="".join(secrets.choice(LETTERS) for _ in range(ID_LETTERS)))


def names_of(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in tools)
