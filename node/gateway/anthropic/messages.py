"""Anthropic's `/v1/messages`: a conversation in, the next message out.

Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.answer import Called, End, Event, Piece, Usage
from node.gateway.answers.answering import Answering
from node.gateway.answers.effort import NONE, SOME, Effort
from node.gateway.answers.endpoint import respond
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.prompts import num_tokens
from node.gateway.answers.request import Picking, Request
from node.gateway.answers.writer import Made, Writer
from node.gateway.anthropic.form import CACHED, Texts, ToolBody, ToolChoice, Turn, conversation_of
from node.gateway.callers.admission import admitted
from node.gateway.http import numbering
from node.gateway.http.error_forms import anthropic
from node.gateway.http.form import (
    EVENT_STREAM,
    MAX_MESSAGES,
    MOST_TOKENS,
    Drawn,
    ModelName,
    StopText,
    Strict,
    Whole,
    dumped,
    event,
    only,
    schema_text,
    stops_of,
)
from node.gateway.http.hanging_up import while_listening
from node.gateway.http.refusal import Refusal, RefusedError
from node.gateway.tools.calling import Calling
from node.gateway.tools.tool_calls import ToolCall
from node.gateway.tools.tools_form import MAX_TOOLS
from swarm.thin.tokenizing.templates import Message

REASONS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}


NOTHING_CLEARED: tuple[dict[str, Any], ...] = ({"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})
"""The second is Claude Code's: earlier thoughts stay in the conversation, as they do here."""


class Metadata(Strict):
    user_id: str | None = Field(None, max_length=512)


class OutputFormat(Strict):
    """What the answer is JSON of."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much the model thinks, as far as the chat template takes it."
    )
    task_budget: only() = None  # type: ignore[valid-type]


class ThinkingOn(Strict):
    type: Literal["enabled"]
    budget_tokens: Whole = Field(ge=1024, le=MOST_TOKENS, description="A thought that is longer is ended.")
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: without thoughts; else they come as they are."
    )


class ThinkingAdaptive(Strict):
    """As the model does by itself."""

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(Strict):
    type: Literal["disabled"]


class CountBody(Strict):
    """The fields that make the prompt."""

    model: ModelName
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: Texts | None = None
    cache_control: only(*CACHED) = None  # type: ignore[valid-type]
    context_management: only(*NOTHING_CLEARED) = None  # type: ignore[valid-type]
    mcp_servers: only([]) = None  # type: ignore[valid-type]
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="The older name of `output_config.format`.")
    speed: only("standard") = None  # type: ignore[valid-type]
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = None
    tool_choice: ToolChoice | None = None
    tools: list[ToolBody] | None = Field(None, max_length=MAX_TOOLS)

    def conversation(self) -> list[Message]:
        """RefusedError if the messages do not fit."""
        return conversation_of(self.messages, self.system)

    @property
    def effort(self) -> Effort | None:
        """How much the model thinks. A model that cannot be told not to think does so, and its thoughts are left out."""
        if isinstance(self.thinking, ThinkingOff):
            return Effort(level=NONE, param="thinking", is_wish=True)
        if self.output_config and self.output_config.effort:
            return Effort(level=self.output_config.effort, param="output_config.effort")
        return Effort(level=SOME, param="thinking") if isinstance(self.thinking, ThinkingOn) else None

    @property
    def shows_thoughts(self) -> bool:
        """They are part of the answer."""
        return isinstance(self.thinking, ThinkingOn | ThinkingAdaptive) and self.thinking.display != "omitted"

    @property
    def choice(self) -> ToolChoice:
        return self.tool_choice or ToolChoice(type="auto")

    def calling(self) -> Calling | None:
        """How the tools are to be called; errors as of `ToolChoice.calling`."""
        return self.choice.calling(self.offered(), [tool.name for tool in self.tools or () if tool.strict])

    def json_schema(self) -> tuple[str | None, str]:
        """Of the answer, None = any text; and the field that says it. RefusedError if it is too long, or said twice."""
        newer, older = self.output_config.format if self.output_config else None, self.output_format
        param = "output_format" if older else "output_config.format"
        if newer and older:
            raise RefusedError("output_format and output_config.format say the same; send one of the two", "output_format")
        found = newer or older
        return schema_text(found.schema_ if found else None, param), param

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools that may be called."""
        return () if self.choice.type == "none" else tuple(tool.offered() for tool in self.tools or ())


class MessagesBody(CountBody, Drawn):
    max_tokens: Whole = Field(ge=1, le=MOST_TOKENS)
    stream: bool | None = None
    stop_sequences: list[StopText] | None = None
    metadata: Metadata | None = None
    container: only() = None  # type: ignore[valid-type]
    diagnostics: only() = None  # type: ignore[valid-type]
    inference_geo: only() = None  # type: ignore[valid-type]
    service_tier: only("auto", "standard_only") = None  # type: ignore[valid-type]

    def request(self) -> Request:
        """RefusedError for stop texts or a budget that are none, a tool that must be called and is not offered, and as of `json_schema`."""
        schema, param = self.json_schema()
        if isinstance(self.thinking, ThinkingOn) and self.thinking.budget_tokens >= self.max_tokens:
            raise RefusedError(
                f"thinking.budget_tokens is less than max_tokens, got {self.thinking.budget_tokens} and {self.max_tokens}",
                "thinking.budget_tokens",
            )
        return Request(
            model=self.model,
            prompts=(self.conversation(),),
            prompt_param="messages",
            tools=self.offered(),
            calling=self.calling(),
            schema=schema,
            schema_param=param,
            effort=self.effort,
            thought_budget=self.thinking.budget_tokens if isinstance(self.thinking, ThinkingOn) else None,
            budget_param="thinking.budget_tokens",
            picking=Picking(drawn=self.drawn(), seed=self.seed),
            max_new_tokens=self.max_tokens,
            stops=stops_of(self.stop_sequences or (), "stop_sequences"),
        )


class MessageWriter(Writer):
    """A message with blocks of thoughts, text and calls, or the events that build it."""

    stream_type = EVENT_STREAM

    def __init__(self, answering: Answering, shows_thoughts: bool) -> None:
        self._number, self._num_prompt = numbering.number(), answering.usage.num_prompt
        model = answering.request.model
        self._message = {"id": f"msg_{self._number}", "type": "message", "role": "assistant", "model": model}
        self._end: End | None = None
        self._shows_thoughts = shows_thoughts
        self._num_blocks, self._open = 0, ""
        """Of blocks that have begun, and the type of the one that has not ended."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {"request-id": f"req_{self._number}"}

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes:
        (answer,) = made
        content: list[dict[str, Any]] = []
        if answer.thoughts and self._shows_thoughts:
            content.append({"type": "thinking", "thinking": answer.thoughts, "signature": ""})
        content += [{"type": "text", "text": answer.text}] if answer.text else []
        content += [{**_used(call), "input": call.arguments} for call in answer.calls]
        return dumped({**self._message, "content": content, **_ended(answer), "usage": self._usage(usage)})

    def opening(self) -> Iterable[bytes]:
        nothing: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(Usage(num_prompt=self._num_prompt)),
        }
        yield _said("message_start", message={**self._message, **nothing})
        yield _said("ping")

    def event(self, one: Event) -> bytes:
        if isinstance(one, End):
            self._end = one
            return b""
        if isinstance(one, Called):
            return self._ended() + self._call(one.call)
        if isinstance(one, Piece):
            return self._more({"type": "text", "text": ""}, {"type": "text_delta", "text": one.text})
        if not self._shows_thoughts:
            return b""
        return self._more({"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": one.text})

    def _more(self, block: dict[str, Any], delta: dict[str, Any]) -> bytes:
        """Of the open block, if that is of the same type; else of a new one."""
        start = b"" if self._open == block["type"] else self._ended() + self._start(block)
        self._open = block["type"]
        return start + self._delta(delta)

    def _call(self, call: ToolCall) -> bytes:
        """A block of its own."""
        start = self._start({**_used(call), "input": {}})
        return start + self._delta({"type": "input_json_delta", "partial_json": call.text}) + self._stop()

    def _ended(self) -> bytes:
        was, self._open = self._open, ""
        return self._stop() if was else b""

    def _start(self, block: dict[str, Any]) -> bytes:
        self._num_blocks += 1
        return _said("content_block_start", index=self._num_blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _said("content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _stop(self) -> bytes:
        return _said("content_block_stop", index=self._num_blocks - 1)

    def ending(self, usage: Usage) -> Iterable[bytes]:
        assert self._end is not None, "a stream has an end"
        yield self._ended()
        yield _said("message_delta", delta=_ended(self._end), usage=self._usage(usage))
        yield _said("message_stop")

    def failure(self, refusal: Refusal) -> bytes:
        return event(anthropic(refusal), "error")

    def _usage(self, usage: Usage) -> dict[str, Any]:
        """The parts of the prompt do not overlap here, unlike in OpenAI's usage."""
        return {
            "input_tokens": usage.num_prompt - usage.num_cached, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.num_cached, "output_tokens": usage.num_new,
            "output_tokens_details": {"thinking_tokens": usage.num_thought},
        }  # fmt: skip


def _used(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.number, "name": call.name}


def _ended(end: Made | End) -> dict[str, str | None]:
    reason = REASONS[end.reason] if end.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": end.stop}


def _said(name: str, **fields: Any) -> bytes:
    return event({"type": name, **fields}, name)


def route(app: FastAPI, gateway: Gateway) -> None:
    """Anthropic's paths."""

    @app.post("/v1/messages")
    async def messages(body: MessagesBody, http: HttpRequest) -> Response:
        def writer_of(answering: Answering) -> MessageWriter:
            return MessageWriter(answering, body.shows_thoughts)

        return await respond(gateway, http, body.request(), writer_of, bool(body.stream))

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountBody, http: HttpRequest) -> dict[str, int]:
        async with admitted(gateway.places, http):
            return {"input_tokens": await while_listening(http, counted(body))}

    async def counted(body: CountBody) -> int:
        return await num_tokens(await gateway.models.get(body.model), body.conversation(), body.offered(), body.effort)
