"""Checks a request's key and counts it, before its body is parsed."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node import metrics
from node.gateway.callers.accounts import Account, Accounts
from node.gateway.callers.meter import Meter
from node.gateway.http import numbering
from node.gateway.http.error_forms import refused
from node.gateway.http.limits import read_small_body
from node.gateway.http.page_path import PAGE, is_page
from node.gateway.http.refusal import RefusedError
from node.metrics import Metrics

log = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/")
"""Answered without a key: for what looks after the gateway's process, and the way to the page."""

QUIET = (PAGE, "/health", "/metrics")
"""Asked for again and again: logged at level DEBUG only."""

NO_ENDPOINT = "other"
"""The label of paths that are no endpoint: clients may ask for any."""


class Callers:
    """ASGI middleware. Each request gets a `Meter` in its state; responses say what is left of the budget."""

    def __init__(self, app: ASGIApp, accounts: Accounts, counts: Metrics, max_seconds: float) -> None:
        """max_seconds: for an answer."""
        self._app, self._accounts, self._counts, self._max_seconds = app, accounts, counts, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or is_page(scope):
            await self._app(scope, receive, send)
            return
        account: Account | None = None

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and account is not None:
                more = [(name.encode(), value.encode()) for name, value in account.headers().items()]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            account = self._accounts.of(Headers(scope=scope))
            if scope["method"] == "POST":
                account.take_request()
        except RefusedError as error:
            response = refused(error.refusal, scope["path"])
            if error.refusal.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await read_small_body(scope, receive)
            await response(scope, receive, sending)
            return
        scope.setdefault("state", {})["meter"] = Meter(account, self._counts, self._max_seconds)
        await self._app(scope, receive, sending)


class Counting:
    """ASGI middleware around all others: each request by endpoint and status, with a number that its response and log lines have."""

    def __init__(self, app: ASGIApp, counts: Metrics) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, number, now_s = 500, numbering.begin(), asyncio.get_running_loop().time
        began_s = now_s()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, message = message["status"], _numbered(message, number)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            path = endpoint_of(scope)
            self._counts.count(metrics.REQUESTS, path=path, status=str(status))
            level = logging.DEBUG if path in QUIET else logging.INFO
            log.log(level, "%s %s: %d in %.2f s", scope["method"], path, status, now_s() - began_s)


def _numbered(message: Message, number: str) -> Message:
    """With the number, if the endpoint has not said it in a form of its own."""
    headers = list(message.get("headers", ()))
    if not any(name.lower() in numbering.HEADERS for name, _ in headers):
        headers.append((numbering.HEADERS[0], f"req_{number}".encode()))
    return {**message, "headers": headers}


def endpoint_of(scope: Scope) -> str:
    """The path as the application declares it, or NO_ENDPOINT."""
    if is_page(scope):
        return PAGE
    declared: str | None = getattr(scope.get("route"), "path", None)
    if declared is not None:
        return declared
    path: str = scope["path"]  # it was refused before it had a route
    return path if path in scope["app"].openapi()["paths"] else NO_ENDPOINT
