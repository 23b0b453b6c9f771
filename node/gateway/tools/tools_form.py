"""Tools as OpenAI's API describes them: offers, calls and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from node.gateway.http.form import Strict, Text
from node.gateway.http.refusal import RefusedError
from node.gateway.tools.calling import Calling, calling_of
from node.gateway.tools.depth import MAX_DEPTH, is_deep

MAX_TOOLS, MAX_CALLS = 128, 128
"""Most tools of a request, and most calls of a message."""


def flat(value: dict[str, Any]) -> dict[str, Any]:
    """A validator: the value, if it is not deep."""
    if is_deep(value):
        raise PydanticCustomError("too_deep", f"has more than {MAX_DEPTH} levels")
    return value


ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionOffer(Strict):
    name: ToolName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(flat)] | None = None
    strict: bool | None = Field(None, description="Arguments are of the schema.")


class ToolOffer(Strict):
    type: Literal["function"]
    function: FunctionOffer

    def offered(self) -> dict[str, Any]:
        """For a chat template."""
        return offer(self.function)


class NamedFunction(Strict):
    name: ToolName


class NamedTool(Strict):
    """The one that must be called."""

    type: Literal["function"]
    function: NamedFunction


class Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(Strict):
    """Those that may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed

    def of(self, offered: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """RefusedError if one is not offered."""
        return allowed_of(offered, [tool.function.name for tool in self.allowed_tools.tools])


def allowed_of(offered: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The offers of these names: the model sees no others. RefusedError if one is missing."""
    found = tuple(tool for tool in offered if tool["function"]["name"] in names)
    missing = set(names) - {tool["function"]["name"] for tool in found}
    if missing:
        raise RefusedError(f"tool_choice allows {', '.join(sorted(missing))}, which tools does not offer", "tool_choice")
    return found


def as_openai_says(
    tools: Sequence[dict[str, Any]], strict: Iterable[str], choice: str | None, only: str | None, is_parallel: bool | None
) -> Calling | None:
    """How the tools are to be called, by `tool_choice` and `parallel_tool_calls`. only: the one that the choice names.

    RefusedError if it names one that is not offered.
    """
    single = "parallel_tool_calls" if is_parallel is False else None
    is_forced = choice == "required" or only is not None
    return calling_of(tools, strict, param="tool_choice", is_forced=is_forced, only=only, single=single)


def offer(function: FunctionOffer) -> dict[str, Any]:
    """For a chat template: all that is known."""
    known = {"name": function.name, "description": function.description or ""}
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**known, "parameters": parameters}}


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """Of a call, for a chat template, which takes them as an object; RefusedError if they are none."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or is_deep(arguments):
        raise RefusedError(f"{param} is no object in JSON, got {text[:80]!r}", param)
    return arguments


class FunctionCall(Strict):
    name: ToolName
    arguments: Text


class CallMade(Strict):
    """A call in an earlier answer."""

    id: str = Field(min_length=1, max_length=200)
    type: Literal["function"]
    function: FunctionCall
    index: int | None = Field(None, description="As a stream had it; not read.")

    def made(self, param: str) -> dict[str, Any]:
        """For a chat template."""
        arguments = arguments_of(self.function.arguments, f"{param}.function.arguments")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}
