"""What Ollama's `/api/chat` and `/api/generate` share: options, and lines of JSON.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.answer import Called, End, Event, Thinking, TokenText, Usage
from node.gateway.answers.answering import Answering
from node.gateway.answers.effort import NONE, SOME, Effort
from node.gateway.answers.request import Picking, Prompt, Request
from node.gateway.answers.writer import Made, Writer
from node.gateway.http import numbering
from node.gateway.http.error_forms import ollama
from node.gateway.http.form import (
    ANY_OBJECT,
    MOST_TOKENS,
    Drawn,
    ModelName,
    StopText,
    Strict,
    Whole,
    dumped,
    only,
    schema_text,
    stops_of,
)
from node.gateway.http.refusal import Refusal, RefusedError
from node.gateway.openai.form import logprob
from node.gateway.tools.tool_calls import ToolCall
from node.gateway.tools.tools_form import ToolOffer, as_openai_says, flat
from swarm.clock import Clock

LATEST = ":latest"
"""What Ollama's clients add to a name without a tag."""

Wrapped = Callable[[str, Sequence[ToolCall], str], dict[str, Any]]


class AnyType(APIRoute):
    """Bodies are read as JSON also if their Content-Type is another one, as Ollama's clients and `curl -d` send it."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(http: HttpRequest) -> Response:
            others = [(name, value) for name, value in http.scope["headers"] if name != b"content-type"]
            http.scope["headers"] = [*others, (b"content-type", b"application/json")]
            return await handle(HttpRequest(http.scope, http.receive))

        return handle_json


class Options(Drawn):
    """How tokens are picked; a seed of -1 means another answer every time.

    `num_ctx` and what follows it say how a machine of one's own should work: they change no answer here.
    """

    num_predict: Whole | None = Field(None, ge=-2, le=MOST_TOKENS, description="-1 and -2: up to the limit.")
    stop: list[StopText] | None = None
    repeat_penalty: float | None = Field(None, ge=0.01, le=100, description="Over the prompt and the answer.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_last_n: only(-1) = None  # type: ignore[valid-type]
    typical_p: only(1, 1.0) = None  # type: ignore[valid-type]
    tfs_z: only(1, 1.0) = None  # type: ignore[valid-type]
    mirostat: only(0) = None  # type: ignore[valid-type]
    penalize_newline: only(True) = None  # type: ignore[valid-type]
    embedding_only: only(False) = None  # type: ignore[valid-type]
    vocab_only: only(False) = None  # type: ignore[valid-type]
    logits_all: only(False) = None  # type: ignore[valid-type]
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None

    def picking(self) -> Picking:
        return Picking(
            drawn=self.drawn(),
            seed=None if self.seed == -1 else self.seed,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    @property
    def max_new_tokens(self) -> int | None:
        """RefusedError for 0."""
        if self.num_predict == 0:
            raise RefusedError("options.num_predict is 1 or more, or -1 for no limit of its own, got 0", "options.num_predict")
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class AskingBody(Strict):
    """The fields of both endpoints."""

    model: ModelName = Field(min_length=1)
    stream: bool | None = Field(None, description="Left out: true.")
    options: Options | None = None
    keep_alive: float | str | None = Field(None, description="Changes nothing: a model of the swarm stays open.")
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    format: Literal["", "json"] | Annotated[dict[str, Any], AfterValidator(flat)] | None = Field(
        None, description='"json", or a JSON schema.'
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(None, description="False: thoughts are left out, too.")
    truncate: only(False) = None  # type: ignore[valid-type]
    shift: only(False) = None  # type: ignore[valid-type]

    @property
    def _effort(self) -> Effort | None:
        if self.think is None:
            return None
        level = self.think if isinstance(self.think, str) else SOME if self.think else NONE
        return Effort(level=level, param="think", is_wish=self.think is False)

    def request_of(self, prompt: Prompt, param: str, model: str, tools: Sequence[ToolOffer] = ()) -> Request:
        """RefusedError if fields contradict each other."""
        if self.top_logprobs and not self.logprobs:
            raise RefusedError("top_logprobs needs logprobs: true", "top_logprobs")
        schema = ANY_OBJECT if self.format == "json" else self.format or None
        options = self.options or Options.model_validate({})
        return Request(
            model=model, effort=self._effort,
            prompts=(prompt,), prompt_param=param, picking=options.picking(), max_new_tokens=options.max_new_tokens,
            stops=stops_of(options.stop or (), "options.stop"), tools=(offered := tuple(tool.offered() for tool in tools)),
            calling=as_openai_says(offered, [tool.function.name for tool in tools if tool.function.strict], None, None, None),
            schema=schema_text(schema, "format"), schema_param="format",
            num_scored=(self.top_logprobs or 0) if self.logprobs else None,
        )  # fmt: skip


class LinesWriter(Writer):
    """An object, or one for each piece on a line of its own; the last one says what the answer has cost."""

    stream_type = "application/x-ndjson"

    def __init__(self, answering: Answering, wrapped: Wrapped, clock: Clock) -> None:
        """wrapped: where an endpoint puts text."""
        self._request, self._wrapped, self._clock = answering.request, wrapped, clock
        self._number, self._reason = numbering.number(), ""
        effort = answering.request.effort
        self._shows_thoughts = effort is None or effort.level != NONE

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-request-id": self._number}

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes:
        (answer,) = made
        scores = {} if self._request.num_scored is None else {"logprobs": scores_of(answer.tokens)}
        thoughts = answer.thoughts if self._shows_thoughts else ""
        return dumped({**self._said(answer.text, answer.calls, thoughts), **done(answer.reason), **costs(usage), **scores})

    def opening(self) -> Iterable[bytes]:
        return ()

    def event(self, one: Event) -> bytes:
        if isinstance(one, End):
            self._reason = one.reason
            return b""
        if isinstance(one, Called):
            return dumped({**self._said("", [one.call]), "done": False}) + b"\n"
        if isinstance(one, Thinking):
            if not self._shows_thoughts:
                return b""
            return dumped({**self._said("", (), one.text), "done": False}) + b"\n"
        scores = {"logprobs": scores_of(one.tokens)} if one.tokens else {}
        return dumped({**self._said(one.text), "done": False, **scores}) + b"\n"

    def ending(self, usage: Usage) -> Iterable[bytes]:
        yield dumped({**self._said(""), **done(self._reason), **costs(usage)}) + b"\n"

    def failure(self, refusal: Refusal) -> bytes:
        return dumped(ollama(refusal)) + b"\n"

    def _said(self, text: str, calls: Sequence[ToolCall] = (), thoughts: str = "") -> dict[str, Any]:
        wrapped = self._wrapped(text, calls, thoughts)
        return {"model": self._request.model, "created_at": moment(self._clock.unix_s()), **wrapped}


def done(reason: str) -> dict[str, Any]:
    return {"done": True, "done_reason": "stop" if reason == "tool_calls" else reason}


def costs(usage: Usage) -> dict[str, int]:
    """Tokens, and nanoseconds."""
    return {
        "total_duration": _ns(usage.load_s + usage.first_s + usage.rest_s),
        "load_duration": _ns(usage.load_s),
        "prompt_eval_count": usage.num_prompt,
        "prompt_eval_duration": _ns(usage.first_s),
        "eval_count": usage.num_new,
        "eval_duration": _ns(usage.rest_s),
    }


def scores_of(tokens: Sequence[TokenText]) -> list[dict[str, Any]]:
    return [
        {**_scored(token.text, token.logprob), "top_logprobs": [_scored(text, value) for text, value in token.top]}
        for token in tokens
    ]


def _scored(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob(value)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def moment(unix_s: float) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
