"""Ollama's `/api/chat` and `/api/generate`.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI
from pydantic import AfterValidator, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from node.gateway.answers.answering import Answering
from node.gateway.answers.endpoint import respond
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.request import Prompt
from node.gateway.callers.admission import admitted
from node.gateway.http.form import MAX_MESSAGES, Strict, Text, only
from node.gateway.http.hanging_up import while_listening
from node.gateway.http.refusal import RefusedError
from node.gateway.ollama.form import LATEST, AnyType, AskingBody, LinesWriter, Wrapped, done, moment
from node.gateway.tools.tool_calls import ToolCall
from node.gateway.tools.tools_form import MAX_CALLS, MAX_TOOLS, ToolName, ToolOffer, flat
from swarm.thin.tokenizing.templates import Message, thoughts_of


class OllamaFunction(Strict):
    name: ToolName
    arguments: Annotated[dict[str, Any], AfterValidator(flat)]
    index: int | None = Field(None, description="Not read.")

    def made(self) -> dict[str, Any]:
        """For a chat template."""
        return {"name": self.name, "arguments": self.arguments}


class OllamaCall(Strict):
    """A call of a tool, in an earlier answer."""

    id: Text | None = Field(None, max_length=200, description="Not read: results follow in the order of the calls.")
    function: OllamaFunction


class OllamaMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    images: only([]) = None  # type: ignore[valid-type]
    thinking: Text | None = None
    tool_calls: list[OllamaCall] | None = Field(None, max_length=MAX_CALLS)
    tool_name: Text | None = Field(None, max_length=200)
    tool_call_id: Text | None = Field(None, max_length=200, description="Not read.")

    def message(self) -> Message:
        """For a chat template."""
        made: Message = {"role": self.role, "content": self.content}
        if self.role == "assistant":
            made |= thoughts_of(self.thinking, self.content)
        if self.role == "assistant" and self.tool_calls:
            made["tool_calls"] = [{"type": "function", "function": call.function.made()} for call in self.tool_calls]
        return made | ({"name": self.tool_name} if self.role == "tool" and self.tool_name else {})


class OllamaChatBody(AskingBody):
    messages: list[OllamaMessage] = Field(default_factory=list, max_length=MAX_MESSAGES)
    tools: list[ToolOffer] | None = Field(None, max_length=MAX_TOOLS)

    def conversation(self) -> list[Message]:
        """RefusedError if the last message is the model's: Ollama would continue it."""
        if self.messages[-1].role == "assistant":
            raise RefusedError(
                "messages: the last message is the assistant's; to continue one is not supported, end with a user's", "messages"
            )
        return [message.message() for message in self.messages]


class GenerateBody(AskingBody):
    prompt: Text = ""
    system: Text | None = None
    raw: bool | None = Field(None, description="The prompt is continued as it stands, without the model's template.")
    context: only([]) = None  # type: ignore[valid-type]
    images: only([]) = None  # type: ignore[valid-type]
    suffix: only("") = None  # type: ignore[valid-type]
    template: only("") = None  # type: ignore[valid-type]

    def asked(self) -> Prompt:
        """RefusedError if fields contradict each other."""
        if not self.raw:
            system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
            return [*system, {"role": "user", "content": self.prompt}]
        if self.system:
            raise RefusedError("system has no place in a raw prompt; leave out one of the two", "system")
        return self.prompt


def as_message(text: str, calls: Sequence[ToolCall], thoughts: str) -> dict[str, Any]:
    made = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    more = {**({"thinking": thoughts} if thoughts else {}), **({"tool_calls": made} if made else {})}
    return {"message": {"role": "assistant", "content": text, **more}}


def as_response(text: str, calls: Sequence[ToolCall], thoughts: str) -> dict[str, Any]:
    assert not calls, "no tools are offered here"
    return {"response": text, **({"thinking": thoughts} if thoughts else {})}


def route(app: FastAPI, gateway: Gateway) -> None:
    """Both paths. Without a prompt, they open the model and say so, as Ollama does."""
    router = APIRouter(route_class=AnyType)

    @router.post("/api/chat")
    async def ollama_chat(body: OllamaChatBody, http: HttpRequest) -> Response:
        if not body.messages:
            return await loaded(body, as_message, http)
        return await answered(body, body.conversation(), "messages", as_message, http)

    @router.post("/api/generate")
    async def ollama_generate(body: GenerateBody, http: HttpRequest) -> Response:
        if not body.prompt:
            return await loaded(body, as_response, http)
        return await answered(body, body.asked(), "prompt", as_response, http)

    async def answered(body: AskingBody, prompt: Prompt, param: str, wrapped: Wrapped, http: HttpRequest) -> Response:
        tools = body.tools if isinstance(body, OllamaChatBody) else None
        request = body.request_of(prompt, param, known_as(gateway, body.model), tools or ())

        def writer_of(answering: Answering) -> LinesWriter:
            return LinesWriter(answering, wrapped, gateway.clock)

        return await respond(gateway, http, request, writer_of, body.stream is not False)

    async def loaded(body: AskingBody, wrapped: Wrapped, http: HttpRequest) -> Response:
        async with admitted(gateway.places, http):
            served = await while_listening(http, gateway.models.get(known_as(gateway, body.model)))
        at = moment(gateway.clock.unix_s())
        return JSONResponse({"model": served.name, "created_at": at, **wrapped("", (), ""), **done("load")})

    app.include_router(router)


def known_as(gateway: Gateway, name: str) -> str:
    """The name by which the gateway has a model that is asked for as Ollama's clients do."""
    short = name.removesuffix(LATEST)
    return short if name not in gateway.models.names and short in gateway.models.names else name
