"""Embeddings of one request, at one model."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.gateway.answers.models import ServedModel
from node.gateway.answers.prompts import check_prompt, ids_of
from node.gateway.callers.meter import Meter
from node.gateway.http.refusal import RefusedError

if TYPE_CHECKING:
    from swarm.thin.embedding import Vector

MAX_TEXTS = 1024
"""Most texts of one request."""

AT_ONCE = 8
"""Sessions of one request: the nodes compute their steps together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts, or their token ids."""

    model: str
    texts: tuple[str | tuple[int, ...], ...]
    param: str
    """What the API calls the field of the texts, for errors."""

    is_cut: bool = False
    """Of a text that is too long, only its beginning counts; False: it is refused."""

    dimensions: int | None = None
    """Refused unless it is the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """In the order of the texts."""

    vectors: Sequence[Vector]
    num_tokens: int


async def embeddings(served: ServedModel, request: EmbeddingRequest, meter: Meter) -> Embeddings:
    """RefusedError if one of the texts has none, or is not paid by the caller's budget; else the error that the swarm meets."""
    width = served.model.defaults.hidden_size
    if request.dimensions not in (None, width):
        raise RefusedError(
            f"dimensions: this model's embeddings have {width}, got {request.dimensions}; leave it out", "dimensions"
        )
    texts = [await _ids(served, text, request) for text in request.texts]
    num_tokens = sum(map(len, texts))
    meter.prompt(served.name, num_tokens)
    free = asyncio.Semaphore(AT_ONCE)

    async def one(ids: list[int]) -> Vector:
        async with free:
            meter.session_began(served.name)
            try:
                return await served.model.embed(ids)
            finally:
                meter.session_ended(served.name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(ids)) for ids in texts]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return Embeddings(vectors=[task.result() for task in tasks], num_tokens=num_tokens)


async def numbers(vectors: Sequence[Vector], is_base64: bool = False) -> AsyncGenerator[bytes, None]:
    """Each as JSON: a list, or its bytes (float32, little-endian) in base64.

    Other requests go on between two: a vector of 4,096 numbers takes some milliseconds.
    """
    for vector in vectors:
        if is_base64:
            yield b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'
        else:
            yield json.dumps(vector.tolist(), separators=(",", ":"), allow_nan=False).encode()
        await asyncio.sleep(0)


async def _ids(served: ServedModel, text: str | tuple[int, ...], request: EmbeddingRequest) -> list[int]:
    ids = await served.aside(ids_of, served, text)
    limit = served.model.defaults.max_positions
    if request.is_cut and limit is not None:
        del ids[limit:]
    check_prompt(served, ids, request.param)
    return ids
