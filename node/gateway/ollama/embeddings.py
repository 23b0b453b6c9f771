"""Ollama's `/api/embed` and `/api/embeddings`: texts in, vectors out.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.embedding import MAX_TEXTS, EmbeddingRequest, Embeddings, embeddings, numbers
from node.gateway.answers.gateway import Gateway
from node.gateway.callers.admission import admitted
from node.gateway.callers.meter import Meter
from node.gateway.http.form import ModelName, Strict, Text, Whole, dumped
from node.gateway.http.hanging_up import while_listening
from node.gateway.ollama.asking import known_as
from node.gateway.ollama.form import AnyType, Options


class EmbedBody(Strict):
    model: ModelName = Field(min_length=1)
    input: Text | Annotated[list[Text], Field(max_length=MAX_TEXTS)]
    truncate: bool | None = Field(None, description="Left out: true. False: a text that is too long is refused.")
    dimensions: Whole | None = Field(None, ge=1, le=1 << 24, description="The model's own, or refused.")
    keep_alive: float | str | None = Field(None, description="Changes nothing: a model of the swarm stays open.")
    options: Options | None = Field(None, description="Change no vector.")


class OldBody(Strict):
    """Of `/api/embeddings`, which Ollama has replaced."""

    model: ModelName = Field(min_length=1)
    prompt: Text = ""
    keep_alive: float | str | None = Field(None, description="Changes nothing: a model of the swarm stays open.")
    options: Options | None = Field(None, description="Change no vector.")


def route(app: FastAPI, gateway: Gateway) -> None:
    """Both paths."""
    router = APIRouter(route_class=AnyType)

    @router.post("/api/embed")
    async def embed(body: EmbedBody, http: HttpRequest) -> Response:
        texts = (body.input,) if isinstance(body.input, str) else tuple(body.input)
        request = EmbeddingRequest(
            model=known_as(gateway, body.model),
            texts=texts,
            param="input",
            is_cut=body.truncate is not False,
            dimensions=body.dimensions,
        )
        began_s = gateway.clock.now_s()
        made = await asked(request, http)
        vectors = b",".join([one async for one in numbers(made.vectors)])
        costs = {"total_duration": round((gateway.clock.now_s() - began_s) * 1e9), "load_duration": 0}
        rest = dumped({"model": body.model, **costs, "prompt_eval_count": made.num_tokens})
        return Response(b'{"embeddings":[' + vectors + b"]," + rest[1:], 200, None, "application/json")

    @router.post("/api/embeddings")
    async def old(body: OldBody, http: HttpRequest) -> Response:
        texts = (body.prompt,) if body.prompt else ()
        made = await asked(EmbeddingRequest(model=known_as(gateway, body.model), texts=texts, param="prompt", is_cut=True), http)
        found = [one async for one in numbers(made.vectors)]
        return Response(b'{"embedding":' + (found[0] if found else b"[]") + b"}", 200, None, "application/json")

    async def asked(request: EmbeddingRequest, http: HttpRequest) -> Embeddings:
        async def work(meter: Meter) -> Embeddings:
            return await embeddings(await gateway.models.get(request.model), request, meter)

        async with admitted(gateway.places, http) as meter:
            return await while_listening(http, work(meter))

    app.include_router(router)
