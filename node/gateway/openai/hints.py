"""What OpenAI's clients say beside a question: no answer depends on it.

Who asks, what they want to remember of it, and how caches may be used. Nodes keep what was computed in any case (docs/gateway.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from node.gateway.http.form import Strict, Text, only

Label = Annotated[Text, Field(max_length=512)]


class CacheOptions(Strict):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Label | None = None


class Breakpoint(Strict):
    """Up to where a prompt may be kept."""

    mode: Literal["explicit"]
    ttl: Label | None = None


class Hints(Strict):
    """The fields of a body."""

    metadata: dict[Annotated[Text, Field(max_length=64)], Label] | None = Field(
        None, max_length=16, description="Is stored nowhere; /v1/responses repeats it."
    )
    prompt_cache_key: Label | None = Field(None, description="Changes nothing.")
    prompt_cache_options: CacheOptions | None = Field(None, description="Changes nothing.")
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(None, description="Changes nothing.")
    safety_identifier: Label | None = Field(None, description="Changes nothing.")
    service_tier: only("auto", "default") = None  # type: ignore[valid-type]
    store: only(False) = None  # type: ignore[valid-type]
