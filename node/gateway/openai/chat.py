"""OpenAI's `/v1/chat/completions`: a conversation in, the next message out.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from node.gateway.answers.answer import Called, End, Piece, Thinking, TokenText
from node.gateway.answers.answering import Answering
from node.gateway.answers.effort import Level
from node.gateway.answers.request import Request
from node.gateway.answers.writer import Made
from node.gateway.http.form import ANY_OBJECT, MAX_MESSAGES, MAX_PARTS, MOST_TOKENS, Strict, Text, Whole, only, schema_text
from node.gateway.http.refusal import RefusedError
from node.gateway.openai.form import GeneratingBody, OpenAiWriter, logprob
from node.gateway.openai.hints import Breakpoint, Hints
from node.gateway.openai.thinking import TemplateVariables, effort_of
from node.gateway.tools.calling import Calling
from node.gateway.tools.tool_calls import ToolCall
from node.gateway.tools.tools_form import MAX_CALLS, MAX_TOOLS, AllowedTools, CallMade, NamedTool, ToolOffer, as_openai_says
from swarm.thin.tokenizing.templates import Message, thoughts_of


class TextPart(Strict):
    type: Literal["text"]
    text: Text
    cache_control: dict[str, str] | None = Field(None, max_length=4, description="Changes nothing. Not in OpenAI's API.")
    prompt_cache_breakpoint: Breakpoint | None = Field(None, description="Changes nothing.")


class Prediction(Strict):
    """Much of what the answer will be."""

    type: Literal["content"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS)] | None = None
    reasoning_content: Text | None = Field(None, description="As it came in an answer. Not in OpenAI's API.")
    tool_calls: list[CallMade] | None = Field(None, max_length=MAX_CALLS)
    tool_call_id: str | None = Field(None, max_length=200)
    name: Text | None = Field(None, max_length=200, description="Goes to the chat template, which mostly does not show it.")
    refusal: only() = None  # type: ignore[valid-type]
    annotations: only([]) = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    function_call: only() = None  # type: ignore[valid-type]

    def message(self, param: str, names: dict[str, str]) -> Message:
        """For a chat template, which knows no developers. names: of the tools that were called so far, by the calls' ids."""
        if field := self._misplaced:
            raise RefusedError(f"{param}.{field} has no place in a message of the role {self.role}", f"{param}.{field}")
        if self.content is None and not self.tool_calls:
            raise RefusedError(f"{param}.content is missing", f"{param}.content")
        given = self.content or ""
        text = given if isinstance(given, str) else "\n".join(part.text for part in given)
        made: Message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        made |= thoughts_of(self.reasoning_content, text) | ({"name": self.name} if self.name else {})
        if self.tool_calls:
            made["tool_calls"] = [call.made(f"{param}.tool_calls.{at}") for at, call in enumerate(self.tool_calls)]
            names |= {call.id: call.function.name for call in self.tool_calls}
        if self.role == "tool":
            made |= self._result_of(param, names)
        return made

    @property
    def _misplaced(self) -> str | None:
        """A field that has no place in a message of this role."""
        is_answer, is_result = self.role == "assistant", self.role == "tool"
        places = (("tool_calls", is_answer), ("reasoning_content", is_answer), ("tool_call_id", is_result))
        return next((field for field, has_place in places if not has_place and getattr(self, field) not in (None, [])), None)

    def _result_of(self, param: str, names: dict[str, str]) -> Message:
        if self.tool_call_id not in names:
            where = f"{param}.tool_call_id"
            raise RefusedError(f"{where} is the id of no call before it, got {str(self.tool_call_id)[:80]!r}", where)
        return {"name": names[self.tool_call_id], "tool_call_id": self.tool_call_id}


class AnyText(Strict):
    type: Literal["text"]


class AnyObject(Strict):
    type: Literal["json_object"]


class Schema(Strict):
    name: Text = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None


class OfSchema(Strict):
    type: Literal["json_schema"]
    json_schema: Schema


def schema_of(form: AnyText | AnyObject | OfSchema | None) -> str | None:
    """The JSON schema of answers; None = any text. RefusedError if it is too long."""
    schema = ANY_OBJECT if isinstance(form, AnyObject) else form.json_schema.schema_ if isinstance(form, OfSchema) else None
    return schema_text(schema, "response_format")


class ChatBody(GeneratingBody, Hints):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    audio: only() = None  # type: ignore[valid-type]
    chat_template_kwargs: TemplateVariables | None = Field(None, description="As in vLLM; not in OpenAI's API.")
    function_call: only("none") = None  # type: ignore[valid-type]
    functions: only([]) = None  # type: ignore[valid-type]
    moderation: only() = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = Field(None, description="Would only make the answer faster: changes nothing.")
    reasoning_effort: Level | None = Field(None, description="As far as the chat template takes it.")
    response_format: AnyText | AnyObject | OfSchema | None = Field(None, discriminator="type")
    thinking_token_budget: Whole | None = Field(
        None, ge=0, le=MOST_TOKENS, description="A thought that is longer is ended. As in vLLM; not in OpenAI's API."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    tools: list[ToolOffer] | None = Field(None, max_length=MAX_TOOLS)
    verbosity: only("medium") = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]

    def conversation(self) -> list[Message]:
        """RefusedError if calls and their results do not fit."""
        names = dict[str, str]()
        return [message.message(f"messages.{at}", names) for at, message in enumerate(self.messages)]

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools that may be called."""
        every = () if self.tool_choice == "none" else tuple(tool.offered() for tool in self.tools or ())
        return self.tool_choice.of(every) if isinstance(self.tool_choice, AllowedTools) else every

    def calling(self) -> Calling | None:
        """How; RefusedError if a tool must be called that is not offered."""
        only = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        choice = self.tool_choice.allowed_tools.mode if isinstance(self.tool_choice, AllowedTools) else self.tool_choice
        strict = [tool.function.name for tool in self.tools or () if tool.function.strict]
        return as_openai_says(self.offered(), strict, choice if isinstance(choice, str) else None, only, self.parallel_tool_calls)

    def request(self) -> Request:
        """RefusedError if fields contradict each other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RefusedError("top_logprobs needs logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RefusedError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; send one of the two",
                "max_completion_tokens",
            )
        return Request(
            model=self.model,
            prompts=(self.conversation(),),
            tools=self.offered(),
            calling=self.calling(),
            prompt_param="messages",
            picking=self.picking(),
            wants_timings=bool(self.timings),
            effort=effort_of(self.reasoning_effort, self.chat_template_kwargs),
            thought_budget=self.thinking_token_budget,
            num_choices=self.n or 1,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            stops=self.stops(),
            schema=schema_of(self.response_format),
            num_scored=(self.top_logprobs or 0) if self.logprobs else None,
        )


class ChatWriter(OpenAiWriter):
    """How a choice looks."""

    kind, stream_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, answering: Answering, created_s: float, includes_usage: bool) -> None:
        super().__init__(answering, created_s, includes_usage)
        self._num_calls: dict[int, int] = {}
        """Of each answer so far."""

    def _opening(self, choice: int) -> dict[str, Any]:
        """What a stream says of an answer before its first token."""
        return {"index": choice, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def _piece(self, piece: Piece) -> dict[str, Any]:
        scores = scores_of(piece.tokens) if piece.tokens else None
        return {"index": piece.choice, "delta": {"content": piece.text}, "logprobs": scores, "finish_reason": None}

    def _called(self, called: Called) -> dict[str, Any]:
        number = self._num_calls.get(called.choice, 0)
        self._num_calls[called.choice] = number + 1
        delta = {"tool_calls": [{"index": number, **call_of(called.call)}]}
        return {"index": called.choice, "delta": delta, "logprobs": None, "finish_reason": None}

    def _thinking(self, thinking: Thinking) -> dict[str, Any]:
        delta = {"reasoning_content": thinking.text}
        return {"index": thinking.choice, "delta": delta, "logprobs": None, "finish_reason": None}

    def _end(self, end: End) -> dict[str, Any]:
        return {"index": end.choice, "delta": {}, "logprobs": None, "finish_reason": end.reason}

    def _made(self, made: Made) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": made.text or (None if made.calls else ""), "refusal": None}
        if made.thoughts:
            message["reasoning_content"] = made.thoughts
        if made.calls:
            message["tool_calls"] = [call_of(call) for call in made.calls]
        scores = scores_of(tuple(made.tokens)) if self.request.num_scored is not None else None
        return {"index": made.choice, "message": message, "logprobs": scores, "finish_reason": made.reason}


def call_of(call: ToolCall) -> dict[str, Any]:
    return {"id": call.number, "type": "function", "function": {"name": call.name, "arguments": call.text}}


def scores_of(tokens: tuple[TokenText, ...]) -> dict[str, Any]:
    return {"content": [_score(token) for token in tokens], "refusal": None}


def _score(token: TokenText) -> dict[str, Any]:
    return {**_scored(token.text, token.logprob), "top_logprobs": [_scored(text, value) for text, value in token.top]}


def _scored(text: str, value: float) -> dict[str, Any]:
    """bytes: null if the token is a part of a letter, whose bytes are not known here."""
    return {"token": text, "logprob": logprob(value), "bytes": None if "\ufffd" in text else list(text.encode())}
