"""Ollama's `/api/tags`, `/api/ps`, `/api/show` and `/api/version`: which models there are.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest

from node.gateway.answers.calls import takes_tools
from node.gateway.answers.effort import thinks
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.models import ServedModel
from node.gateway.callers.admission import admitted
from node.gateway.http.form import ModelName, Strict, only
from node.gateway.http.hanging_up import while_listening
from node.gateway.ollama.asking import known_as
from node.gateway.ollama.form import AnyType, moment

API_VERSION = "0.12.0"
"""The version of Ollama whose API this is; editors ask for a least one."""

FAR_OFF = "2318-01-01T00:00:00Z"
"""What Ollama itself says of a model that stays."""

ARCHITECTURE = "swarm"
"""Where Ollama names the kind of a model, which only the nodes need to know."""

DETAILS: dict[str, Any] = {
    "parent_model": "", "format": "safetensors", "family": ARCHITECTURE, "families": [ARCHITECTURE], "parameter_size": "",
    "quantization_level": "",
}  # fmt: skip


class ShowBody(Strict):
    model: ModelName = Field(min_length=1)
    verbose: bool | None = None
    options: only({}) = None  # type: ignore[valid-type]
    system: only("") = None  # type: ignore[valid-type]
    template: only("") = None  # type: ignore[valid-type]


def route(app: FastAPI, gateway: Gateway) -> None:
    """The four paths."""
    router = APIRouter(route_class=AnyType)

    @router.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": API_VERSION}

    @router.get("/api/tags")
    async def tags() -> dict[str, Any]:
        return {"models": [listed(name) for name in gateway.models.names]}

    @router.get("/api/ps")
    async def running() -> dict[str, Any]:
        """Those that are open, which none leaves by itself."""
        names = [name for name in gateway.models.names if gateway.models.opened(name) is not None]
        return {"models": [{**listed(name), "size_vram": 0, "expires_at": FAR_OFF} for name in names]}

    @router.post("/api/show")
    async def show(body: ShowBody, http: HttpRequest) -> dict[str, Any]:
        async with admitted(gateway.places, http):
            served = await while_listening(http, gateway.models.get(known_as(gateway, body.model)))
        return shown_of(served, moment(gateway.started_s))

    def listed(name: str) -> dict[str, Any]:
        served = gateway.models.opened(name)
        digest = "" if served is None else served.model.model.digest
        at = moment(gateway.started_s)
        return {"name": name, "model": name, "modified_at": at, "size": 0, "digest": digest, "details": DETAILS}

    app.include_router(router)


def shown_of(served: ServedModel, at: str) -> dict[str, Any]:
    """What is known of a model without its weights."""
    own = served.model.defaults
    info = {"context_length": own.max_positions, "embedding_length": own.hidden_size, "vocab_size": own.vocab_size}
    known = {f"{ARCHITECTURE}.{name}": value for name, value in info.items() if value is not None}
    return {
        "modelfile": f"FROM {served.name}", "parameters": "", "template": served.model.tokenizer.chat_template or "",
        "details": DETAILS, "model_info": {"general.architecture": ARCHITECTURE, **known}, "modified_at": at,
        "capabilities": list(capabilities_of(served.model.tokenizer.chat_template or "")),
    }  # fmt: skip


def capabilities_of(template: str) -> Iterator[str]:
    """What a model with this chat template can do, as Ollama's clients ask for it."""
    yield from ("completion", "embedding")
    if takes_tools(template):
        yield "tools"
    if thinks(template):
        yield "thinking"
