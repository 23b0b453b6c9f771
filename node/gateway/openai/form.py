"""What the endpoints of OpenAI's API share: fields, errors and server-sent events.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from node.gateway.answers.answer import Called, End, Event, Piece, Thinking, Usage
from node.gateway.answers.answering import Answering
from node.gateway.answers.models import ServedModel
from node.gateway.answers.request import MAX_CHOICES, Picking
from node.gateway.answers.writer import Made
from node.gateway.http import numbering
from node.gateway.http.error_forms import openai
from node.gateway.http.form import (
    EVENT_STREAM,
    MOST_TOKENS,
    Drawn,
    ModelName,
    StopText,
    Strict,
    Whole,
    dumped,
    event,
    only,
    stops_of,
)
from node.gateway.http.refusal import Refusal, RefusedError

LEAST_LOGPROB = -9999.0
"""What the API writes for a token that cannot come: JSON has no infinity."""


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class GeneratingBody(Drawn):
    """The fields of both endpoints that generate."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Whole | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopText | list[StopText] | None = None
    max_tokens: Whole | None = Field(None, ge=1, le=MOST_TOKENS)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="As in transformers. Not in OpenAI's API.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    user: str | None = Field(None, max_length=512, description="Changes nothing.")
    timings: bool | None = Field(
        None, description="Say how long each part took: `timings` beside the usage. Not in OpenAI's API."
    )

    def picking(self) -> Picking:
        """How tokens are picked."""
        return Picking(
            drawn=self.drawn(),
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=bias_of(self.logit_bias or {}),
        )

    def stops(self) -> tuple[str, ...]:
        """RefusedError if one is empty, or there are too many."""
        return stops_of((self.stop,) if isinstance(self.stop, str) else self.stop or (), "stop")

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


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_new,
        "total_tokens": usage.num_prompt + usage.num_new,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached},
        "completion_tokens_details": {"reasoning_tokens": usage.num_thought},
    }


def fingerprint(served: ServedModel) -> str:
    """Which weights have answered."""
    return f"fp_{served.model.model.digest[:16]}"


def logprob(value: float) -> float:
    return value if math.isfinite(value) else LEAST_LOGPROB


class OpenAiWriter(ABC):
    """A `Writer` of the two endpoints; they differ in how they write one choice."""

    kind: ClassVar[str]
    stream_kind: ClassVar[str]
    prefix: ClassVar[str]
    """Of the id of a response."""

    stream_type: ClassVar[str] = EVENT_STREAM

    def __init__(self, answering: Answering, created_s: float, includes_usage: bool) -> None:
        self.request, self._includes_usage = answering.request, includes_usage
        self._id = self.prefix + numbering.number()
        self._head = {
            "created": int(created_s), "model": self.request.model, "system_fingerprint": fingerprint(answering.served)
        }  # fmt: skip

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-request-id": self._id}

    def whole(self, made: Sequence[Made], usage: Usage) -> bytes:
        choices = [self._made(one) for one in made]
        more = {"usage": usage_of(usage), **self._timings(usage)}
        return dumped({"id": self._id, "object": self.kind, **self._head, "choices": choices, **more})

    def opening(self) -> Iterable[bytes]:
        return [self._part(one) for choice in range(self.request.num_answers) if (one := self._opening(choice)) is not None]

    def event(self, one: Event) -> bytes:
        if isinstance(one, Called):
            return self._part(self._called(one))
        if isinstance(one, Thinking):
            return self._part(self._thinking(one))
        return self._part(self._end(one) if isinstance(one, End) else self._piece(one))

    def ending(self, usage: Usage) -> Iterable[bytes]:
        if self._includes_usage or self.request.wants_timings:
            yield self._part(None, usage_of(usage), self._timings(usage))
        yield b"data: [DONE]\n\n"

    def failure(self, refusal: Refusal) -> bytes:
        return event(openai(refusal))

    def _timings(self, usage: Usage) -> dict[str, Any]:
        """How long each part took, a list with an entry for each choice; nothing if it is not wanted."""
        if not self.request.wants_timings:
            return {}
        return {"timings": [{"index": choice, **made.as_json()} for choice, made in sorted(usage.timings.items())]}

    def _part(
        self, choice: dict[str, Any] | None, usage: dict[str, Any] | None = None, timings: Mapping[str, Any] | None = None
    ) -> bytes:
        """One choice, or none and the usage; with usage wanted, each part has the field."""
        choices = [] if choice is None else [choice]
        more = {**({"usage": usage} if self._includes_usage else {}), **(timings or {})}
        return event({"id": self._id, "object": self.stream_kind, **self._head, "choices": choices, **more})

    @abstractmethod
    def _made(self, made: Made) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def _opening(self, choice: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token."""

    @abstractmethod
    def _piece(self, piece: Piece) -> dict[str, Any]: ...

    def _called(self, called: Called) -> dict[str, Any]:
        raise AssertionError(f"no tools are offered here, and {called.call.name} was called")

    def _thinking(self, thinking: Thinking) -> dict[str, Any]:
        raise AssertionError(f"texts are continued here, and {thinking.text[:80]!r} is a thought")

    @abstractmethod
    def _end(self, end: End) -> dict[str, Any]: ...
