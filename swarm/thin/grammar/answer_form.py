"""What an answer must be: JSON of a schema, or calls.

Plain data, as it goes to the sandbox that knows the tokens (`swarm/thin/constraining.py`, `call_grammar.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

MAX_REFERENCES = 8
"""One after the other, from the schema of an argument to that of a text."""

WHOLE = ("[", "{")
"""First letters of calls that are the whole answer: a list of calls, or one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a family writes one call: `open` NAME `between` ARGUMENTS `close`. A line break may be left out, `#` is a number, `@` an id of
    nine letters and digits.

    With `value`, each argument is written as `key` KEY `value` VALUE `end`: a text as it stands, anything else as JSON. Else arguments are
    one object in JSON.
    """

    open: str
    between: str
    close: str = ""
    key: str = ""
    value: str = ""
    end: str = ""
    separator: str = ""
    """Between several calls of a section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a family writes calls."""

    begin: str
    end: str = ""
    """Empty: calls are the whole answer, and `begin` is its first letter, one of WHOLE; or, with a layout, they are the rest of it."""

    mark: str = ""
    """A special token before calls that are the whole answer: it is no text. Only if the tokenizer has it."""

    name: str = "name"
    key: str = "arguments"
    """What the family calls the name and the arguments, in JSON with both."""

    number: str = ""
    """What it calls the number of the call there; empty: it has none."""

    layout: Layout | None = None
    """None: each call is such JSON."""

    is_section: bool = False
    """Several calls stand between `begin` and `end`, else one. Without a layout, they are a list."""

    marks: tuple[str, ...] = ()
    """All marks of it that may be tokens of their own."""

    around: tuple[str, ...] = ()
    """Special tokens that may stand before and behind calls that are the whole answer, and are no text."""

    or_python: bool = False
    """A list of calls as Python writes them, `[f(a=1), g()]`, is one, too."""

    is_python: bool = False
    """Calls are written so."""

    is_channels: bool = False
    """An answer is messages, each in a channel of its own, and a call is one of them."""

    @property
    def firsts(self) -> str:
        """Letters with which calls that are the whole answer begin."""
        return self.begin + ("[" if self.or_python and self.begin != "[" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtForm:
    """The marks around the thought with which an answer may begin."""

    begin: str
    end: str
    behind: str = ""
    """What else stands before the answer: the thought is a message in a channel of its own."""

    is_open: bool = False
    """The prompt has begun it, so the answer begins in it."""

    is_over: bool = False
    """The prompt has ended it, so that the model does not think."""

    around: tuple[str, ...] = ()
    """Marks before and behind the text that follows it: they are no text."""


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

    lead: str = ""
    """Marks before the JSON, such as the channel in which it is said."""

    thought: ThoughtForm | None = None
    """What may come before all of that; if it is open, it must."""

    def pack(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> AnswerForm:
        """What `pack` packed."""
        calls, thought = packed["calls"], packed["thought"]
        if thought is not None:
            thought = ThoughtForm(**{**thought, "around": tuple(thought["around"])})
        form = cls(schema=packed["schema"], lead=packed["lead"], thought=thought)
        return form if calls is None else replace(form, calls=_rules(calls))


def _rules(packed: Mapping[str, Any]) -> CallRules:
    tools = tuple(OfferedCall(**tool) for tool in packed["tools"])
    layout = packed["form"]["layout"]
    words = {name: tuple(packed["form"][name]) for name in ("marks", "around")}
    form = CallForm(**{**packed["form"], **words, "layout": layout and Layout(**layout)})
    return CallRules(**{**packed, "form": form, "tools": tools})


def properties_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of each argument by itself, with the definitions that it may refer to."""
    found = parameters.get("properties")
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return (
        {key: {**value, **shared} for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
    )


def texts_of(schema: Mapping[str, Any]) -> list[str] | None:
    """Of an argument that is a text, those that it may be, [] = any; None: it is something else."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        _, section, *names = reference.split("/")
        named = schema.get(section)
        found = named.get("/".join(names)) if isinstance(named, dict) else None
        schema = {**found, section: named} if isinstance(found, dict) else {}
    some = [schema["const"]] if "const" in schema else schema.get("enum", [])
    if not isinstance(some, list) or not all(isinstance(one, str) for one in some):
        return None
    return some if some or schema.get("type") == "string" else None


def schema_of(parameters: Mapping[str, Any], is_strict: bool) -> str:
    """Of a tool's arguments, which are an object in any case. Not strict: what is not supported of it, is not kept to."""
    return json.dumps({"type": "object", **parameters, "x-guidance": {} if is_strict else {"lenient": True}})
