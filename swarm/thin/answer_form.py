"""What an answer must be: JSON of a schema, or calls.

Plain data, as it goes to the sandbox that knows the tokens (`constraining.py`, `call_grammar.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

WHOLE = ("[", "{")
"""First letters of calls that are the whole answer: a list of calls, or one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a family writes calls."""

    begin: str
    end: str = ""
    """Empty: calls are the whole answer, and `begin` is its first letter, one of WHOLE."""

    mark: str = ""
    """A special token before calls that are the whole answer: it is no text. Only if the tokenizer has it."""

    key: str = "arguments"
    """What the family calls the arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedCall:
    """A tool that may be called."""

    name: str
    schema: str
    """Of its arguments, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """Which calls an answer may have, and must have."""

    form: CallForm
    tools: tuple[OfferedCall, ...]
    is_forced: bool = False
    """The answer is calls, at least one, and no text."""

    is_single: bool = False
    """At most one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """An answer is text, or calls; without rules for calls, it is text only."""

    schema: str | None = None
    """The text is JSON of this schema, itself JSON; None = any text."""

    calls: CallRules | None = None

    def pack(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> AnswerForm:
        """What `pack` packed."""
        calls = packed["calls"]
        if calls is None:
            return cls(schema=packed["schema"])
        tools = tuple(OfferedCall(**tool) for tool in calls["tools"])
        return cls(schema=packed["schema"], calls=CallRules(**{**calls, "form": CallForm(**calls["form"]), "tools": tools}))


def schema_of(parameters: Mapping[str, Any], is_strict: bool) -> str:
    """Of a tool's arguments, which are an object in any case. Not strict: what is not supported of it, is not kept to."""
    return json.dumps({"type": "object", **parameters, "x-guidance": {} if is_strict else {"lenient": True}})
