"""Limits the size and time of request bodies, and their origin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.gateway.http.browsers import is_foreign
from node.gateway.http.error_forms import refused
from node.gateway.http.page_path import is_page
from node.gateway.http.refusal import Refusal

BODY_S = 30.0
"""Longest time from a request's headers to the end of its body."""


SMALL_BODY_BYTES, SMALL_BODY_S = 1 << 16, 1.0
"""A body that is read before a refusal, and for how long at most."""


async def read_small_body(scope: Scope, receive: Receive) -> None:
    """Before a refusal. The server closes a connection behind the answer to a request whose body is unread: a client that is still
    sending gets a reset instead of the answer."""
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and 0 < int(length) <= SMALL_BODY_BYTES:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SMALL_BODY_S):
                while (await receive()).get("more_body", False):
                    pass


class Limits:
    """ASGI middleware. Bodies are counted as they come: `content-length` is only a claim."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, is_loopback: bool, origins: Sequence[str] = ()) -> None:
        """origins: whose pages may use the APIs, beside our own."""
        self._app, self._most, self._is_loopback, self._origins = app, max_body_bytes, is_loopback, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origins = () if is_page(scope) else self._origins
        if is_foreign(headers.get("origin"), headers.get("host"), self._is_loopback, origins):
            await read_small_body(scope, receive)
            refusal = Refusal(status=403, message="requests of other web pages are not answered", code="foreign_origin")
            await refused(refusal, scope["path"])(scope, receive, send)
            return
        claimed = headers.get("content-length", "0")
        if not claimed.isdecimal() or int(claimed) > self._most:
            await refused(self._too_large(), scope["path"])(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Browsers let any page open a socket anywhere, and say only whose page it is."""
        headers = Headers(scope=scope)
        if not is_foreign(headers.get("origin"), headers.get("host"), self._is_loopback):
            await self._app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "sockets of other web pages are not answered"})

    def _bounded(self, receive: Receive) -> Receive:
        left, is_read = self._most, False
        ends_at_s = asyncio.get_running_loop().time() + BODY_S

        async def bounded() -> Message:
            nonlocal left, is_read
            if is_read:
                return await receive()
            try:
                async with asyncio.timeout_at(ends_at_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {BODY_S:.0f} s") from None
            left -= len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            if left < 0:
                raise HTTPException(413, self._too_large().message)
            return message

        return bounded

    def _too_large(self) -> Refusal:
        return Refusal(status=413, message=f"the body is too large: at most {self._most} bytes are read", code="body_too_large")
