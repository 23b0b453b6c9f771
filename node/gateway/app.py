"""The gateway as an ASGI application: which path means what.

app = create_app(GatewayConfig(models=("tiny",), peers=("/ip4/…/p2p/…",)))      # for any ASGI server, or to mount in a larger one
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from node.dashboard.door import Door
from node.gateway import document, page
from node.gateway.answers.answering import Answering
from node.gateway.answers.config import GatewayConfig
from node.gateway.answers.endpoint import respond
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.request import Request
from node.gateway.anthropic import messages as anthropic_messages
from node.gateway.callers.callers import Callers, Counting
from node.gateway.http.error_forms import refused
from node.gateway.http.hanging_up import HungUpError
from node.gateway.http.limits import Limits
from node.gateway.http.origins import Origins
from node.gateway.http.refusal import Refusal, RefusedError, of_error, of_validation
from node.gateway.ollama import asking as ollama_asking
from node.gateway.ollama import embeddings as ollama_embeddings
from node.gateway.ollama import models as ollama_models
from node.gateway.openai import embeddings as openai_embeddings
from node.gateway.openai import responses as openai_responses
from node.gateway.openai.chat import ChatBody, ChatWriter
from node.gateway.openai.completions import CompletionBody, CompletionWriter
from node.gateway.openai.form import GeneratingBody, OpenAiWriter
from node.gateway.page_talk import PageTalk
from protocols.errors import SwarmError

WARM_S = 1.0
"""From the opening of the models until the page is imported, which takes 0.4 s of a core."""


def create_app(config: GatewayConfig, *, is_loopback: bool = True) -> FastAPI:
    """The application. Its lifespan joins the swarm, and leaves it. Without keys in `config`, all that reach it may ask.

    is_loopback: it listens for this machine only, so that requests by another host name are refused.
    """
    gateway = Gateway(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway:
            gateway.keep(_warm(gateway, door), "warming the page")
            yield

    app = FastAPI(
        title="Murmuration", version=metadata.version("murmuration"), lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Models of the swarm by the APIs of OpenAI, Anthropic and Ollama. What is not supported is refused by name.",
    )  # fmt: skip
    app.state.gateway = gateway
    app.add_middleware(Callers, accounts=gateway.accounts, counts=gateway.metrics, max_seconds=config.max_seconds)
    app.add_middleware(Limits, max_body_bytes=config.max_body_bytes, is_loopback=is_loopback, origins=config.origins)
    if config.origins:
        app.add_middleware(Origins, origins=config.origins)
    app.add_middleware(Counting, counts=gateway.metrics)  # the last one added is the first one that a request meets
    gateway.dashboard.talk = PageTalk(gateway)
    door = page.mount(app, gateway.dashboard)
    _answer_errors(app)
    _route_openai(app, gateway)
    for api in (openai_embeddings, openai_responses, anthropic_messages, ollama_asking, ollama_embeddings, ollama_models):
        api.route(app, gateway)

    document.publish(app, gateway.models)
    _route_watching(app, gateway)
    return app


def _route_watching(app: FastAPI, gateway: Gateway) -> None:
    """What programs ask that watch over the gateway itself."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 if every model that was named is open, else 503."""
        models = {name: gateway.models.opened(name) is not None for name in gateway.models.names}
        is_well = gateway.is_well
        body = {"status": "ok" if is_well else "starting", "models": models, "requests": gateway.places.num_taken}
        return JSONResponse(body, 200 if is_well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus, in its text form."""
        return Response(gateway.metrics.text(), media_type=gateway.metrics.content_type)


async def _warm(gateway: Gateway, door: Door) -> None:
    """Once the first models are open, for they come first."""
    await gateway.all_open.wait()
    await asyncio.sleep(WARM_S)
    await door.warm()
    gateway.is_warm.set()


def _route_openai(app: FastAPI, gateway: Gateway) -> None:
    def described(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": int(gateway.started_s), "owned_by": "swarm"}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [described(name) for name in gateway.models.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, object]:
        gateway.models.check(name)
        return described(name)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        return await openai(body, body.request(), ChatWriter, http)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: HttpRequest) -> Response:
        return await openai(body, body.request(), CompletionWriter, http)

    async def openai(body: GeneratingBody, request: Request, writer: type[OpenAiWriter], http: HttpRequest) -> Response:
        includes_usage = body.includes_usage

        def writer_of(answering: Answering) -> OpenAiWriter:
            return writer(answering, gateway.clock.unix_s(), includes_usage)

        return await respond(gateway, http, request, writer_of, bool(body.stream))


def _answer_errors(app: FastAPI) -> None:
    """Every failure in the form of the API that was asked."""

    async def invalid(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refused(of_validation(error.errors(), error.body), http.scope["path"])

    async def by_status(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        response = refused(Refusal(status=error.status_code, message=str(error.detail)), http.scope["path"])
        response.headers.update(error.headers or {})
        return response

    async def hung_up(_: HttpRequest, error: Exception) -> Response:
        return Response(status_code=499)  # for the log: its reader has gone

    async def failed(http: HttpRequest, error: Exception) -> Response:
        return refused(of_error(error), http.scope["path"])

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, by_status)
    app.add_exception_handler(HungUpError, hung_up)
    for kind in (SwarmError, RefusedError, Exception):
        app.add_exception_handler(kind, failed)
