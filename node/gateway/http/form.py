"""What all APIs share: strict fields, JSON, server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from node.gateway.http.refusal import RefusedError
from swarm.thin.settings import SAMPLING

MAX_STOPS, MAX_STOP = 16, 200
"""Most stop texts, and most letters of one."""

MAX_MESSAGES, MAX_PARTS = 10_000, 1000
"""Most messages of a conversation, and most parts of one."""

MOST_TOKENS = 1 << 24
"""Most new tokens that a request may name; the model's own limit is lower."""

EVENT_STREAM = "text/event-stream; charset=utf-8"


def _unicode(text: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PydanticCustomError("string_unicode", "half a letter, as JSON can spell one, is no text")
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""Text that has bytes: no tokenizer takes another."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A number without a fraction, also if it is written with one: 7.0 is an integer to JSON Schema."""

ModelName = Annotated[Text, Field(max_length=300)]
StopText = Annotated[Text, Field(max_length=MAX_STOP)]


class Strict(BaseModel):
    """Fields as they are declared, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


def only(*values: Any) -> Any:
    """The type of a field that this gateway does not support: null, or one of the values with which it changes nothing."""

    def checked(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in (None, *values)):
            one = " or ".join(json.dumps(one) for one in (*values, None))
            raise PydanticCustomError("unsupported", f"is not supported by this gateway; leave it out (or send {one})")
        return value

    published = {"enum": [*values, None], "description": "Not supported; refused unless it changes nothing."}
    return Annotated[Any, AfterValidator(checked), WithJsonSchema(published)]


class Drawn(Strict):
    """How tokens are drawn: what an API does not have of it is added to it."""

    temperature: float | None = Field(None, ge=0, le=100, description="0: the likeliest token.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=0, le=1 << 24, description="0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Least share of the likeliest token's probability.")
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**64, description="The same seed draws the same tokens.")

    def drawn(self) -> dict[str, float]:
        """What is given of it, without the seed."""
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}


MAX_SCHEMA = 100_000
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def schema_text(schema: Mapping[str, Any] | None, param: str) -> str | None:
    """A JSON schema of answers as text; RefusedError if it is too long."""
    text = None if schema is None else json.dumps(schema)
    if text is not None and len(text) > MAX_SCHEMA:
        raise RefusedError(f"{param}: the JSON schema has {len(text)} letters, at most {MAX_SCHEMA} are taken", param)
    return text


def stops_of(found: Sequence[str], param: str) -> tuple[str, ...]:
    """The stop texts; RefusedError if one is empty, or there are too many."""
    if len(found) > MAX_STOPS or not all(found):
        raise RefusedError(f"{param} is up to {MAX_STOPS} texts, none of them empty, got {len(found)}", param)
    return tuple(found)


def dumped(document: Mapping[str, Any]) -> bytes:
    """As JSON; an error may repeat half a letter, which is replaced."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def event(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dumped(document) + b"\n\n"
