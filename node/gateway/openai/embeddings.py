"""OpenAI's `/v1/embeddings`: texts in, vectors out.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.embedding import MAX_TEXTS, EmbeddingRequest, Embeddings, embeddings, numbers
from node.gateway.answers.gateway import Gateway
from node.gateway.callers.admission import admitted
from node.gateway.callers.meter import Meter
from node.gateway.http import numbering
from node.gateway.http.form import ModelName, Strict, Text, Whole, dumped
from node.gateway.http.hanging_up import while_listening
from node.gateway.openai.completions import TokenIds


class EmbeddingsBody(Strict):
    model: ModelName
    input: (
        Text
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = Field(None, ge=1, le=1 << 24, description="The model's own, or refused.")
    user: str | None = Field(None, max_length=512, description="Goes to the gateway's log.")

    def request(self) -> EmbeddingRequest:
        given = self.input
        if isinstance(given, str):
            texts: tuple[str | tuple[int, ...], ...] = (given,)
        elif isinstance(given[0], int):
            texts = (tuple(one for one in given if isinstance(one, int)),)
        else:
            texts = tuple(one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int))
        return EmbeddingRequest(model=self.model, texts=texts, param="input", dimensions=self.dimensions)


async def written(made: Embeddings, model: str, is_base64: bool) -> bytes:
    """The response."""
    items: list[bytes] = []
    async for number in numbers(made.vectors, is_base64):
        items.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (len(items), number))
    usage = {"prompt_tokens": made.num_tokens, "total_tokens": made.num_tokens}
    return b'{"object":"list","data":[' + b",".join(items) + b"]," + dumped({"model": model, "usage": usage})[1:]


def route(app: FastAPI, gateway: Gateway) -> None:
    """The path."""

    @app.post("/v1/embeddings")
    async def openai_embeddings(body: EmbeddingsBody, http: HttpRequest) -> Response:
        async with admitted(gateway.places, http) as meter:
            content = await while_listening(http, work(body, meter))
        return Response(content, 200, {"x-request-id": f"embd-{numbering.number()}"}, "application/json")

    async def work(body: EmbeddingsBody, meter: Meter) -> bytes:
        made = await embeddings(await gateway.models.get(body.model), body.request(), meter)
        return await written(made, body.model, body.encoding_format == "base64")
