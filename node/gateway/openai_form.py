"""What the endpoints of OpenAI's API share: fields, errors and server-sent events.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from node.gateway.answer import End, Event, Piece, Usage
from node.gateway.answering import Answering
from node.gateway.models import ServedModel
from node.gateway.refusal import Refusal, RefusedError
from node.gateway.request import MAX_CHOICES, Picking
from node.gateway.writer import Made
from swarm.thin.settings import SAMPLING

LEAST_LOGPROB = -9999.0
"""What the API writes for a token that cannot come: JSON has no infinity."""

MAX_STOPS, MAX_STOP = 16, 200
"""Most stop texts, and most letters of one."""


def _unicode(text: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PydanticCustomError("string_unicode", "half a letter, as JSON can spell one, is no text")
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""Text that has bytes: no tokenizer takes another."""


class Strict(BaseModel):
    """Fields as they are declared, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


def only(*values: Any) -> Any:
    """The type of a field that this gateway does not support: null, or one of the values with which it changes nothing."""

    def checked(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in (None, *values)):
            one = " or ".join(json.dumps(one) for one in (*values, None))
            raise PydanticCustomError("unsupported", f"is not supported by this gateway; leave it out (or send {one})")
        return value

    return Annotated[Any, AfterValidator(checked), Field(description="Not supported; refused unless it changes nothing.")]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class GeneratingBody(Strict):
    """The fields of both endpoints that generate."""

    model: Text = Field(max_length=300)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: Annotated[Text, Field(max_length=MAX_STOP)] | list[Annotated[Text, Field(max_length=MAX_STOP)]] | None = None
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 24, description="0: all tokens. Not in OpenAI's API.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not in OpenAI's API.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="As in transformers. Not in OpenAI's API.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    user: str | None = Field(None, max_length=512, description="Goes to the gateway's log.")

    def picking(self) -> Picking:
        """How tokens are picked."""
        given = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        return Picking(
            drawn=given,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=bias_of(self.logit_bias or {}),
        )

    def stops(self) -> tuple[str, ...]:
        """RefusedError if one is empty, or there are too many."""
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(found) > MAX_STOPS or not all(found):
            raise RefusedError(f"stop is up to {MAX_STOPS} texts, none of them empty, got {len(found)}", "stop")
        return found

    @property
    def includes_usage(self) -> bool:
        """RefusedError if it is asked for without a stream."""
        if self.stream_options is not None and not self.stream:
            raise RefusedError("stream_options is for streams; send stream: true, or leave it out", "stream_options")
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def bias_of(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """RefusedError if a key is no token id."""
    wrong = next((key for key in given if not (key.isascii() and key.isdecimal() and len(key) < 10)), None)
    if wrong is not None:
        raise RefusedError(f"logit_bias has token ids as keys, got {wrong[:40]!r}", "logit_bias")
    found = {int(key): value for key, value in given.items()}
    return tuple(found.items())


def usage_of(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_new,
        "total_tokens": usage.num_prompt + usage.num_new,
    }


def fingerprint(served: ServedModel) -> str:
    """Which weights have answered."""
    return f"fp_{served.model.model.digest[:16]}"


def logprob(value: float) -> float:
    return value if math.isfinite(value) else LEAST_LOGPROB


def dumped(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", "replace"
    )  # an error may repeat half a letter


def error_of(refusal: Refusal) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(refusal.status)
    kind = kind or ("invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return Response(dumped(error_of(refusal)), refusal.status, headers, "application/json")


class OpenAiWriter(ABC):
    """A `Writer` of the two endpoints; they differ in how they write one choice."""

    kind: ClassVar[str]
    stream_kind: ClassVar[str]
    prefix: ClassVar[str]
    """Of the id of a response."""

    stream_type: ClassVar[str] = "text/event-stream; charset=utf-8"

    def __init__(self, answering: Answering, created_s: float, includes_usage: bool) -> None:
        self.request, self._includes_usage = answering.request, includes_usage
        self._id = self.prefix + secrets.token_hex(12)
        self._head = {
            "created": int(created_s), "model": self.request.model, "system_fingerprint": fingerprint(answering.served)
        }  # fmt: skip

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-request-id": self._id}

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes:
        choices = [self._made(one) for one in made]
        return dumped({"id": self._id, "object": self.kind, **self._head, "choices": choices, "usage": usage_of(usage)})

    def opening(self) -> Iterable[bytes]:
        choices = range(len(self.request.prompts) * self.request.num_choices)
        return [self._part(one) for choice in choices if (one := self._opening(choice)) is not None]

    def event(self, event: Event) -> bytes:
        return self._part(self._end(event) if isinstance(event, End) else self._piece(event))

    def ending(self, usage: Usage) -> Iterable[bytes]:
        if self._includes_usage:
            yield self._part(None, usage_of(usage))
        yield b"data: [DONE]\n\n"

    def failure(self, refusal: Refusal) -> bytes:
        return _sent(error_of(refusal))

    def _part(self, choice: dict[str, Any] | None, usage: dict[str, int] | None = None) -> bytes:
        """One choice, or none and the usage; with usage wanted, each part has the field."""
        choices = [] if choice is None else [choice]
        more = {"usage": usage} if self._includes_usage else {}
        return _sent({"id": self._id, "object": self.stream_kind, **self._head, "choices": choices, **more})

    @abstractmethod
    def _made(self, made: Made) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def _opening(self, choice: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token."""

    @abstractmethod
    def _piece(self, piece: Piece) -> dict[str, Any]: ...

    @abstractmethod
    def _end(self, end: End) -> dict[str, Any]: ...


def _sent(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + dumped(document) + b"\n\n"
