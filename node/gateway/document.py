"""The published OpenAPI document.

FastAPI makes it of the bodies. What the gateway refuses beyond their types is said here as far as a schema can say it: which models there
are, their token ids, texts that may not be empty, and conversations that every chat template takes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from node.gateway.answers.models import Models
from node.gateway.http.form import MAX_MESSAGES, MAX_STOPS

Schema = dict[str, Any]

NOT_EMPTY = frozenset({"prompt", "input", "stop", "stop_sequences"})
"""Fields whose texts and lists have something in them."""

OF_TOKENS = frozenset({"prompt", "input"})

TALKS: Mapping[str, Schema] = {
    "ChatBody": {
        "role": {"enum": ["system", "developer", "user", "assistant"]}, "content": {"type": "string"}, "name": {"type": "null"},
    },
    "CountBody": {"role": {"const": "user"}, "content": {"type": "string", "minLength": 1}},
    "MessagesBody": {"role": {"const": "user"}, "content": {"type": "string", "minLength": 1}},
    "ResponsesBody": {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": {"type": "string"}},
}  # fmt: skip
"""By body: messages that need no others, unlike results of tools."""


BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def publish(app: FastAPI, models: Models) -> None:
    """The document names the models that are open when it is asked for."""
    plain = app.openapi

    def openapi() -> Schema:
        document = copy.deepcopy(plain())
        served = [found.model.defaults for name in models.names if (found := models.opened(name)) is not None]
        num_ids = min([one.vocab_size for one in served], default=1 << 31)
        widths = sorted({one.hidden_size for one in served if one.hidden_size})
        for name, schema in document["components"]["schemas"].items():
            for field, prop in schema.get("properties", {}).items():
                for part in _parts(prop):
                    _rename(part)
                _say(name, field, prop, tuple(models.names), num_ids, widths)
        if models.names:
            document["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["schema"]["enum"] = list(models.names)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _say(body: str, field: str, schema: Schema, names: tuple[str, ...], num_ids: int, widths: list[int]) -> None:
    if field == "model" and names:
        schema["enum"] = list(names)
    elif field in ("messages", "input") and body in TALKS:
        _say_talks(schema, TALKS[body])
    elif field == "dimensions" and widths:
        schema["anyOf"] = [{"enum": [*widths, None]}]
    elif field == "logit_bias":
        for one in _parts(schema):
            if one.get("type") == "object":
                one["propertyNames"] = {"pattern": f"^[0-9]{{1,{max(1, len(str(num_ids)) - 1)}}}$"}
    for one in _parts(schema) if field in NOT_EMPTY else ():
        least = {"string": "minLength", "array": "minItems"}.get(one.get("type", ""))
        if least is not None:
            one[least] = max(1, one.get(least, 0))
        if one.get("type") == "array" and field not in OF_TOKENS:
            one["maxItems"] = MAX_STOPS
        if one.get("type") == "integer" and field in OF_TOKENS:
            one.pop("exclusiveMaximum", None)
            one["maximum"] = num_ids - 1


def _rename(schema: Schema) -> None:
    """Bounds as JSON Schema calls them, where pydantic has left its own names."""
    for own, name in BOUNDS.items():
        if own in schema:
            schema[name] = schema.pop(own)


def _say_talks(schema: Schema, message: Schema) -> None:
    """Simple conversations first, then any."""
    any_talk = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems", "anyOf") if key in schema}
    one = {"type": "object", "properties": message, "required": ["role", "content"], "additionalProperties": False}
    schema["anyOf"] = [{"type": "array", "items": one, "minItems": 1, "maxItems": MAX_MESSAGES}, any_talk]


def _parts(schema: Schema) -> Iterator[Schema]:
    """The schema, and those of its alternatives and items."""
    yield schema
    for one in (*schema.get("anyOf", ()), *([schema["items"]] if isinstance(schema.get("items"), dict) else ())):
        yield from _parts(one)
