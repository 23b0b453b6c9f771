"""Anthropic's messages: text, calls of tools, and their results.

Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/agents-and-tools/tool-use
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from node.gateway.http.form import MAX_PARTS, Strict, Text, only
from node.gateway.http.refusal import RefusedError
from node.gateway.tools.calling import Calling, calling_of
from node.gateway.tools.tools_form import ToolName, flat
from swarm.thin.tokenizing.templates import Message, thoughts_of

CACHED = ({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}, {"type": "ephemeral", "ttl": "1h"})
"""Wishes for a cache: no answer depends on them."""


class TextBlock(Strict):
    type: Literal["text"]
    text: Text
    cache_control: only(*CACHED) = None  # type: ignore[valid-type]
    citations: only([]) = None  # type: ignore[valid-type]


MISPLACED = {"user": ("tool_use", "thinking"), "assistant": ("tool_result",)}
"""Blocks that have no place in a message of a role."""

Texts = Text | Annotated[list[TextBlock], Field(max_length=MAX_PARTS)]


class UseBlock(Strict):
    """A call of a tool, in an earlier answer."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=200)
    name: ToolName
    input: Annotated[dict[str, Any], AfterValidator(flat)]
    cache_control: only(*CACHED) = None  # type: ignore[valid-type]
    caller: only({"type": "direct"}) = None  # type: ignore[valid-type]
    toolset_name: only() = None  # type: ignore[valid-type]

    def made(self) -> dict[str, Any]:
        """For a chat template."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.input}}


class ResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=200)
    content: Texts | None = None
    is_error: bool | None = Field(None, description="Goes to no chat template: say it in the text.")
    cache_control: only(*CACHED) = None  # type: ignore[valid-type]


class ThinkingBlock(Strict):
    """What the model has thought, in an earlier answer."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text = Field("", description="Not read: an answer's is empty.")


Block = Annotated[TextBlock | UseBlock | ResultBlock | ThinkingBlock, Field(discriminator="type")]


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: Text | Annotated[list[Block], Field(max_length=MAX_PARTS)]

    def blocks(self) -> list[TextBlock | UseBlock | ResultBlock | ThinkingBlock]:
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ToolBody(Strict):
    type: Literal["custom"] | None = None
    name: ToolName
    description: Text | None = None
    input_schema: Annotated[dict[str, Any], AfterValidator(flat)]
    strict: bool | None = Field(None, description="The input is of the schema.")
    allowed_callers: only(["direct"]) = None  # type: ignore[valid-type]
    defer_loading: only(False) = None  # type: ignore[valid-type]
    eager_input_streaming: bool | None = Field(None, description="Changes nothing: an input comes whole.")
    cache_control: only(*CACHED) = None  # type: ignore[valid-type]

    def offered(self) -> dict[str, Any]:
        """For a chat template."""
        function = {"name": self.name, "description": self.description or "", "parameters": self.input_schema}
        return {"type": "function", "function": function}


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    def calling(self, tools: Sequence[dict[str, Any]], strict: Iterable[str]) -> Calling | None:
        """How the tools are to be called; RefusedError if a tool must be called that is not offered, or fields contradict each other."""
        if (self.name is not None) != (self.type == "tool"):
            raise RefusedError(f"tool_choice.name belongs to the type tool, got the type {self.type}", "tool_choice.name")
        if self.type == "none" and self.disable_parallel_tool_use is not None:
            where = "tool_choice.disable_parallel_tool_use"
            raise RefusedError(f"{where} has no place beside the type none", where)
        single = "tool_choice.disable_parallel_tool_use" if self.disable_parallel_tool_use else None
        is_forced = self.type in ("any", "tool")
        return calling_of(tools, strict, param="tool_choice", is_forced=is_forced, only=self.name, single=single)


def text_of(content: str | Sequence[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())


def conversation_of(turns: Sequence[Turn], system: str | Sequence[TextBlock] | None) -> list[Message]:
    """For a chat template: neighbouring turns of one role are one, as in Anthropic's API. RefusedError if the last is the model's."""
    if turns[-1].role == "assistant":
        raise RefusedError(
            "messages: the last message is the assistant's; to continue one is not supported, end with a user's", "messages"
        )
    found: list[Message] = [] if system is None else [{"role": "system", "content": text_of(system)}]
    names = dict[str, str]()
    for at, turn in enumerate(turns):
        for message in _messages(turn, f"messages.{at}", names):
            if found and found[-1]["role"] == message["role"] != "tool":
                _join(found[-1], message)
            else:
                found.append(message)
    return found


def _messages(turn: Turn, param: str, names: dict[str, str]) -> Iterator[Message]:
    """Of one turn: results of tools, then the rest. names: of the tools that were called so far, by the calls' ids."""
    blocks = turn.blocks()
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    uses = [block for block in blocks if isinstance(block, UseBlock)]
    results = [block for block in blocks if isinstance(block, ResultBlock)]
    thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    misplaced = [block.type for block in blocks if block.type in MISPLACED[turn.role]]
    if misplaced:
        kind = misplaced[0]
        raise RefusedError(
            f"{param}.content: a block of the type {kind} has no place in a message of the {turn.role}", f"{param}.content"
        )
    for result in results:
        if result.tool_use_id not in names:
            given = result.tool_use_id[:80]
            raise RefusedError(f"{param}.content: tool_use_id is the id of no call before it, got {given!r}", f"{param}.content")
        name = names[result.tool_use_id]
        yield {"role": "tool", "content": text_of(result.content), "name": name, "tool_call_id": result.tool_use_id}
    names |= {use.id: use.name for use in uses}
    if texts or not results:
        text = text_of(texts)
        called = {"tool_calls": [use.made() for use in uses]} if uses else {}
        yield {"role": turn.role, "content": text} | thoughts_of(thoughts, text) | called


def _join(first: Message, second: Message) -> None:
    thoughts = "\n".join(one["reasoning_content"] for one in (first, second) if "reasoning_content" in one)
    first["content"] = "\n".join(text for text in (first["content"], second["content"]) if text)
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        first["tool_calls"] = calls
    first.pop("thinking", None)
    first |= thoughts_of(thoughts, first["content"])
