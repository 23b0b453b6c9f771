"""Items of a conversation, as `/v1/responses` takes them.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag

from node.gateway.http import form
from node.gateway.http.form import Strict, Text, only
from node.gateway.http.refusal import RefusedError
from node.gateway.openai.hints import Breakpoint
from node.gateway.tools.tools_form import MAX_TOOLS, FunctionOffer, ToolName, allowed_of, arguments_of, offer
from swarm.thin.tokenizing.templates import Message, thoughts_of


class OutputPart(Strict):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: only([]) = None  # type: ignore[valid-type]
    logprobs: list[dict[str, Any]] | None = Field(None, description="As an answer had them; not read.")
    prompt_cache_breakpoint: Breakpoint | None = Field(None, description="Changes nothing.")


class MessageItem(Strict):
    """Of the user, or of an answer before."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[OutputPart], Field(max_length=form.MAX_PARTS)]
    id: str | None = Field(None, max_length=200)
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: only() = None  # type: ignore[valid-type]

    def message(self) -> Message:
        return {"role": "system" if self.role == "developer" else self.role, "content": text_of(self.content)}


class CallItem(Strict):
    """A call of a tool, in an answer before."""

    type: Literal["function_call"]
    caller: only({"type": "direct"}) = None  # type: ignore[valid-type]
    namespace: only() = None  # type: ignore[valid-type]
    async_: only(False) = Field(None, validation_alias=AliasChoices("async", "async_"))  # type: ignore[valid-type]
    call_id: str = Field(min_length=1, max_length=200)
    name: ToolName
    arguments: Text
    id: str | None = Field(None, max_length=200)
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def made(self, param: str) -> dict[str, Any]:
        """For a chat template."""
        arguments = arguments_of(self.arguments, f"{param}.arguments")
        return {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: Text


class SummaryText(Strict):
    type: Literal["summary_text"]
    text: Text


class ReasoningItem(Strict):
    """What the model has thought, in an answer before."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(max_length=form.MAX_PARTS)] | None = None
    summary: list[SummaryText] = Field(
        default_factory=list, max_length=form.MAX_PARTS, description="Not read: an answer's is empty."
    )
    encrypted_content: only() = None  # type: ignore[valid-type]
    id: str | None = Field(None, max_length=200)
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content or ())


class ResultItem(Strict):
    """Of a tool that was called."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=200)
    output: Text | Annotated[list[OutputPart], Field(max_length=form.MAX_PARTS)]
    id: str | None = Field(None, max_length=200)
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionTool(FunctionOffer):
    """As in chats, but on one level."""

    type: Literal["function"]
    allowed_callers: only(["direct"]) = None  # type: ignore[valid-type]
    defer_loading: only(False) = None  # type: ignore[valid-type]
    output_schema: only() = None  # type: ignore[valid-type]

    def offered(self) -> dict[str, Any]:
        """For a chat template."""
        return offer(self)


class NamedFunctionTool(Strict):
    """The one that must be called."""

    type: Literal["function"]
    name: ToolName


class AllowedFunctionTools(Strict):
    """Those that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunctionTool] = Field(min_length=1, max_length=MAX_TOOLS)

    def of(self, offered: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """RefusedError if one is not offered."""
        return allowed_of(offered, [tool.name for tool in self.tools])


def text_of(content: str | Sequence[OutputPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _kind_of(item: Any) -> Any:
    """Of an item as it came: one without a type is a message."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of),
]


def conversation_of(items: Sequence[MessageItem | CallItem | ResultItem | ReasoningItem]) -> list[Message]:
    """For a chat template, where calls and thoughts belong to a message; RefusedError if a result has no call."""
    found, names, thoughts = list[Message](), dict[str, str](), ""
    for at, item in enumerate(items):
        if isinstance(item, ReasoningItem):
            thoughts = "\n".join(text for text in (thoughts, item.text) if text)
            continue
        if isinstance(item, MessageItem):
            message = item.message()
            found.append(message | (thoughts_of(thoughts, message["content"]) if item.role == "assistant" else {}))
        elif isinstance(item, CallItem):
            names[item.call_id] = item.name
            if not found or found[-1]["role"] != "assistant" or thoughts:
                found.append({"role": "assistant", "content": "", **thoughts_of(thoughts, "")})
            found[-1].setdefault("tool_calls", []).append(item.made(f"input.{at}"))
        elif item.call_id in names:
            called = {"name": names[item.call_id], "tool_call_id": item.call_id}
            found.append({"role": "tool", "content": text_of(item.output), **called})
        else:
            where = f"input.{at}.call_id"
            raise RefusedError(f"{where} is the id of no call before it, got {item.call_id[:80]!r}", where)
        thoughts = ""
    return found
