"""OpenAI's `/v1/responses`: a conversation in, items of output out. Nothing is stored.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.answer import Called, End, Event, Thinking, TokenText, Usage
from node.gateway.answers.answering import Answering
from node.gateway.answers.effort import Effort, Level
from node.gateway.answers.endpoint import respond
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.request import Picking, Request
from node.gateway.answers.writer import Made, Writer
from node.gateway.http import form, numbering
from node.gateway.http.form import ANY_OBJECT, Drawn, Strict, Text, dumped, event, only, schema_text
from node.gateway.http.refusal import Refusal, RefusedError
from node.gateway.openai.chat import AnyObject, AnyText, Schema, scores_of
from node.gateway.openai.form import StreamOptions
from node.gateway.openai.hints import Hints
from node.gateway.openai.items import (
    AllowedFunctionTools,
    FunctionTool,
    Item,
    NamedFunctionTool,
    conversation_of,
)
from node.gateway.tools.calling import Calling
from node.gateway.tools.tool_calls import ToolCall
from node.gateway.tools.tools_form import MAX_TOOLS, as_openai_says
from swarm.thin.tokenizing.templates import Message

SCORES = "message.output_text.logprobs"


Included = Literal[
    "message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
    "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]  # fmt: skip


class TextOfSchema(Schema):
    """As in chats, but on one level."""

    type: Literal["json_schema"]


class TextSettings(Strict):
    format: AnyText | AnyObject | TextOfSchema | None = Field(None, discriminator="type")
    verbosity: only("medium") = None  # type: ignore[valid-type]

    def json_schema(self) -> str | None:
        """The JSON schema of answers; None = any text. RefusedError if it is too long."""
        form = self.format
        schema = ANY_OBJECT if isinstance(form, AnyObject) else form.schema_ if isinstance(form, TextOfSchema) else None
        return schema_text(schema, "text.format")


Summary = Literal["auto", "concise", "detailed"]


class Reasoning(Strict):
    effort: Level | None = Field(None, description="As far as the chat template takes it.")
    summary: Summary | None = Field(None, description="There is none: thoughts come as they are.")
    generate_summary: Summary | None = Field(None, description="The older name of summary.")
    context: only("auto") = None  # type: ignore[valid-type]
    mode: only("standard") = None  # type: ignore[valid-type]


class ResponsesBody(Drawn, Hints):
    model: form.ModelName
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=form.MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: form.Whole | None = Field(None, ge=1, le=form.MOST_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Included] | None = Field(None, max_length=20, description="What no answer here has changes nothing.")
    top_logprobs: form.Whole | None = Field(None, ge=0, le=20)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="As in transformers. Not in OpenAI's API.")
    text: TextSettings | None = None
    user: str | None = Field(None, max_length=512)
    background: only(False) = None  # type: ignore[valid-type]
    context_management: only() = None  # type: ignore[valid-type]
    conversation: only() = None  # type: ignore[valid-type]
    max_tool_calls: form.Whole | None = Field(None, ge=1, description="Of tools that run at OpenAI's: changes nothing.")
    moderation: only() = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    previous_response_id: only() = None  # type: ignore[valid-type]
    prompt: only() = None  # type: ignore[valid-type]
    reasoning: Reasoning | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | AllowedFunctionTools | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    truncation: only("disabled") = None  # type: ignore[valid-type]

    def messages(self) -> list[Message]:
        """The instructions first."""
        first: list[Message] = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        return [*first, *conversation_of(self.input)]

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools that may be called."""
        every = () if self.tool_choice == "none" else tuple(tool.offered() for tool in self.tools or ())
        return self.tool_choice.of(every) if isinstance(self.tool_choice, AllowedFunctionTools) else every

    def calling(self) -> Calling | None:
        """How; RefusedError if a tool must be called that is not offered."""
        only = self.tool_choice.name if isinstance(self.tool_choice, NamedFunctionTool) else None
        choice = self.tool_choice.mode if isinstance(self.tool_choice, AllowedFunctionTools) else self.tool_choice
        strict = [tool.name for tool in self.tools or () if tool.strict]
        return as_openai_says(self.offered(), strict, choice if isinstance(choice, str) else None, only, self.parallel_tool_calls)

    @property
    def choice(self) -> str | dict[str, Any]:
        """As it was given."""
        given = self.tool_choice or "auto"
        return given if isinstance(given, str) else given.model_dump()

    @property
    def text_format(self) -> dict[str, Any]:
        """The same."""
        form = self.text.format if self.text else None
        return {"type": "text"} if form is None else form.model_dump(by_alias=True)

    @property
    def effort(self) -> Level | None:
        return self.reasoning.effort if self.reasoning else None

    @property
    def has_scores(self) -> bool:
        return SCORES in (self.include or ())

    def request(self) -> Request:
        """RefusedError if fields contradict each other."""
        if self.top_logprobs and not self.has_scores:
            raise RefusedError(f'top_logprobs needs include: ["{SCORES}"]', "top_logprobs")
        if self.stream_options is not None and (not self.stream or self.stream_options.include_usage is not None):
            raise RefusedError("stream_options: a stream has its usage at its end in any case; leave it out", "stream_options")
        return Request(
            model=self.model,
            prompts=(self.messages(),),
            prompt_param="input",
            tools=self.offered(),
            calling=self.calling(),
            schema=self.text.json_schema() if self.text else None,
            schema_param="text.format",
            picking=Picking(drawn=self.drawn(), seed=self.seed, repetition_penalty=self.repetition_penalty),
            max_new_tokens=self.max_output_tokens,
            num_scored=(self.top_logprobs or 0) if self.has_scores else None,
            scores_calls=False,
            effort=Effort(level=self.effort, param="reasoning.effort") if self.effort else None,
        )


class ResponseWriter(Writer):
    """A response with thoughts, a message and calls of tools, or the numbered events that build them."""

    stream_type = form.EVENT_STREAM

    def __init__(self, answering: Answering, body: ResponsesBody, created_s: float) -> None:
        number, self._numbers = numbering.number(), count()
        self._number, self._made = number, Made(0)
        self._output: list[dict[str, Any]] = []
        """Items that are complete."""

        self._open, self._reason = "", ""
        """The first: the type of the item that has begun and not ended."""
        self._response: dict[str, Any] = {
            "id": f"resp_{number}", "object": "response", "created_at": int(created_s), "status": "in_progress",
            "background": False, "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "model": answering.request.model, "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": None,
            "reasoning": {"effort": body.effort, "summary": None},
            "store": False, "temperature": body.temperature, "text": {"format": body.text_format},
            "tool_choice": body.choice, "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0, "top_p": body.top_p, "truncation": "disabled", "usage": None, "user": body.user,
        }  # fmt: skip

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-request-id": self._response["id"]}

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes:
        (self._made,) = made
        self._reason = self._made.reason
        if self._made.thoughts:
            self._output.append(self._thought(self._status if not (self._made.text or self._made.calls) else "completed"))
        if self._made.text or not (self._made.calls or self._made.thoughts):
            self._output.append(self._message(self._status))
        self._output += [self._call_item(call) for call in self._made.calls]
        return dumped(self._ended(usage))

    def opening(self) -> Iterable[bytes]:
        yield self._said("response.created", response=self._response)
        yield self._said("response.in_progress", response=self._response)

    def event(self, one: Event) -> bytes:
        if isinstance(one, End):
            self._reason = one.reason
            return b""
        if isinstance(one, Called):
            return self._item_ended("completed") + self._called(one.call)
        start = self._item_started("reasoning" if isinstance(one, Thinking) else "message")
        if isinstance(one, Thinking):
            self._made.thoughts += one.text
            return start + self._said("response.reasoning_text.delta", delta=one.text, **self._at)
        self._made.text += one.text
        self._made.tokens += one.tokens
        scores = self._scores(one.tokens)
        return start + self._said("response.output_text.delta", delta=one.text, logprobs=scores, **self._at)

    def ending(self, usage: Usage) -> Iterable[bytes]:
        if not (self._output or self._open):
            yield self._item_started("message")
        yield self._item_ended(self._status)
        yield self._said(f"response.{self._status}", response=self._ended(usage))

    def _item_started(self, kind: str) -> bytes:
        """If an item of this type is not open already."""
        if self._open == kind:
            return b""
        ended = self._item_ended("completed")
        self._open, self._made = kind, Made(0)
        item = self._opened("in_progress")
        (part,) = item["content"]
        started = self._said("response.output_item.added", output_index=len(self._output), item={**item, "content": []})
        return ended + started + self._said("response.content_part.added", part=part, **self._at)

    def _item_ended(self, status: str) -> bytes:
        if not self._open:
            return b""
        item, at, number = self._opened(status), self._at, len(self._output)
        (part,) = item["content"]
        self._open = ""
        self._output.append(item)
        said = {key: value for key, value in part.items() if key in ("text", "logprobs")}
        return (
            self._said(f"response.{part['type']}.done", **said, **at)
            + self._said("response.content_part.done", part=part, **at)
            + self._said("response.output_item.done", output_index=number, item=item)
        )

    def _opened(self, status: str) -> dict[str, Any]:
        """The item that is open, as far as it is known."""
        return self._thought(status) if self._open == "reasoning" else self._message(status)

    def _called(self, call: ToolCall) -> bytes:
        item, number = self._call_item(call), len(self._output)
        at = {"item_id": item["id"], "output_index": number}
        self._output.append(item)
        opened = {**item, "status": "in_progress", "arguments": ""}
        return (
            self._said("response.output_item.added", output_index=number, item=opened)
            + self._said("response.function_call_arguments.delta", delta=call.text, **at)
            + self._said("response.function_call_arguments.done", name=call.name, arguments=call.text, **at)
            + self._said("response.output_item.done", output_index=number, item=item)
        )

    @property
    def _at(self) -> dict[str, Any]:
        """Of the item that is being written."""
        prefix = "rs" if self._open == "reasoning" else "msg"
        return {"item_id": self._id(prefix), "output_index": len(self._output), "content_index": 0}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._number}{len(self._output) or ''}"

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def failure(self, refusal: Refusal) -> bytes:
        error = {"code": refusal.code or "server_error", "message": refusal.message}
        failed = {**self._response, "status": "failed", "error": error}
        return self._said("error", **error, param=refusal.param) + self._said("response.failed", response=failed)

    def _ended(self, usage: Usage) -> dict[str, Any]:
        details = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        ended = {"status": self._status, "incomplete_details": details, "output": self._output, "usage": usage_of(usage)}
        return {**self._response, **ended}

    def _call_item(self, call: ToolCall) -> dict[str, Any]:
        called = {"call_id": call.number, "name": call.name, "arguments": call.text}
        return {"id": f"fc_{call.number}", "type": "function_call", "status": "completed", **called}

    def _message(self, status: str) -> dict[str, Any]:
        content = [self._part(self._made.text, self._made.tokens)]
        return {"id": self._id("msg"), "type": "message", "status": status, "role": "assistant", "content": content}

    def _thought(self, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": self._made.thoughts}]
        return {"id": self._id("rs"), "type": "reasoning", "status": status, "summary": [], "content": content}

    def _part(self, text: str, tokens: Sequence[TokenText]) -> dict[str, Any]:
        return {"type": "output_text", "annotations": [], "logprobs": self._scores(tokens), "text": text}

    def _scores(self, tokens: Sequence[TokenText]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = scores_of(tuple(tokens))["content"]
        return found

    def _said(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached, "cache_write_tokens": 0},
        "output_tokens": usage.num_new,
        "output_tokens_details": {"reasoning_tokens": usage.num_thought},
        "total_tokens": usage.num_prompt + usage.num_new,
    }


def route(app: FastAPI, gateway: Gateway) -> None:
    """The path."""

    @app.post("/v1/responses")
    async def responses(body: ResponsesBody, http: HttpRequest) -> Response:
        def writer_of(answering: Answering) -> ResponseWriter:
            return ResponseWriter(answering, body, gateway.clock.unix_s())

        return await respond(gateway, http, body.request(), writer_of, bool(body.stream))
