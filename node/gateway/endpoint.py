"""One request of OpenAI's API, from its parsed body to the response."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answer import End, Event, Piece, TokenText
from node.gateway.answering import Answering
from node.gateway.gateway import Gateway
from node.gateway.hanging_up import EventStream, while_listening
from node.gateway.openai_form import DONE, dumped, error_of, event, fingerprint, usage_of
from node.gateway.refusal import of_error
from node.gateway.request import Request


@dataclass(slots=True)
class Made:
    """One answer, complete."""

    choice: int
    text: str = ""
    reason: str = ""
    tokens: list[TokenText] = field(default_factory=list)


class Format(Protocol):
    """How one endpoint writes choices; one for each request."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    prefix: ClassVar[str]
    """Of the id of a response."""

    def begin(self, choice: int) -> dict[str, Any] | None: ...

    def piece(self, piece: Piece) -> dict[str, Any]: ...

    def end(self, end: End) -> dict[str, Any]: ...

    def whole(self, made: Made, has_scores: bool) -> dict[str, Any]: ...


class Endpoint:
    """Answers one request. `respond` returns when the first token is there, so that what fails before it has a status of its own."""

    def __init__(self, gateway: Gateway, request: Request, form: Format) -> None:
        self._gateway, self._request, self._form = gateway, request, form

    async def respond(self, http: HttpRequest, is_stream: bool, includes_usage: bool) -> Response:
        """The response, while the client listens; HungUpError if it does not."""
        async with AsyncExitStack() as held:
            held.enter_context(self._gateway.places.taken())
            answering = await while_listening(http, self._answering())
            head = self._head(answering, self._form.chunk_kind if is_stream else self._form.kind)
            headers = {"x-request-id": head["id"]}
            if not is_stream:
                return Response(await while_listening(http, self._whole(answering, head)), 200, headers, "application/json")
            events = await held.enter_async_context(aclosing(answering.events()))
            first = await while_listening(http, anext(events))
            chunks = self._chunks(answering, events, first, head, includes_usage)
            return EventStream(chunks, headers, held.pop_all().aclose)

    async def _answering(self) -> Answering:
        return await Answering.of(await self._gateway.models.get(self._request.model), self._request)

    def _head(self, answering: Answering, kind: str) -> dict[str, Any]:
        return {
            "id": self._form.prefix + secrets.token_hex(12), "object": kind, "created": int(self._gateway.unix_s()),
            "model": self._request.model, "system_fingerprint": fingerprint(answering.served),
        }  # fmt: skip

    async def _whole(self, answering: Answering, head: Mapping[str, Any]) -> bytes:
        found = [Made(choice) for choice in range(len(self._request.prompts) * self._request.num_choices)]
        async with aclosing(answering.events()) as events:
            async for one in events:
                made = found[one.choice]
                if isinstance(one, End):
                    made.reason = one.reason
                else:
                    made.text += one.text
                    made.tokens += one.tokens
        choices = [self._form.whole(made, self._request.num_scored is not None) for made in found]
        return dumped({**head, "choices": choices, "usage": usage_of(answering.usage)})

    async def _chunks(
        self,
        answering: Answering,
        events: AsyncGenerator[Event, None],
        first: Event,
        head: Mapping[str, Any],
        includes_usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        """Server-sent events; what goes wrong is the last one."""
        usage: dict[str, Any] = {"usage": None} if includes_usage else {}
        try:
            for choice in range(len(self._request.prompts) * self._request.num_choices):
                if (opening := self._form.begin(choice)) is not None:
                    yield event({**head, "choices": [opening], **usage})
            yield event({**head, "choices": [self._choice(first)], **usage})
            async for one in events:
                yield event({**head, "choices": [self._choice(one)], **usage})
        except Exception as error:
            yield event(error_of(of_error(error)))
            return
        if includes_usage:
            yield event({**head, "choices": [], "usage": usage_of(answering.usage)})
        yield DONE

    def _choice(self, one: Event) -> dict[str, Any]:
        return self._form.end(one) if isinstance(one, End) else self._form.piece(one)
