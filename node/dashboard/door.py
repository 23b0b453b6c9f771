"""Who may see the page: an ASGI application around its pages.

If the gateway has keys, a visitor types one. The browser keeps it in a cookie that scripts cannot read, that goes to the page alone, and
that no other site's page can use. Each request is checked with it as a request to the API is. The pages, with NiceGUI, are imported by the
first visitor that is let in, or by `warm` before: so a gateway starts without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.dashboard.dashboard import Dashboard
from node.dashboard.login import login_page

COOKIE = "murmuration_page"
MAX_KEY_LETTERS = 200
MAX_LOGIN_BYTES = 2_048
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # NiceGUI builds its page in the browser
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Nothing comes from elsewhere and nothing goes there, whatever a text of a peer might become."""

GUARDS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, a browser says `Origin: null` where our own form is sent
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Door:
    """Lets in those whose key is good, or all if none is needed."""

    def __init__(self, dashboard: Dashboard, load: Callable[[], Awaitable[ASGIApp]]) -> None:
        """load: imports the pages and starts them; called once."""
        self._dashboard, self._load = dashboard, load
        self._pages: ASGIApp | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, _guarded(send))

    async def warm(self) -> None:
        """Import the pages now, so that the first visitor does not wait for it."""
        await self._open()

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._may_enter(scope):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "a key is needed"})
            return
        await self._enter(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == "/login":
            await (await self._login(scope, receive))(scope, receive, send)
        elif not self._may_enter(scope):
            await HTMLResponse(login_page(_home(scope)), 401)(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD", "POST"):
            await PlainTextResponse("this method is not allowed here", 405)(scope, receive, send)
        else:
            await self._enter(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        return self._dashboard.check_key(_with_key(scope))

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            return HTMLResponse(login_page(_home(scope)))
        key = parse_qs((await _body(receive)).decode("ascii", "replace")).get("key", [""])[0].strip()[:MAX_KEY_LETTERS]
        is_good = key.isascii() and key.isprintable() and self._dashboard.check_key(Headers({"authorization": f"Bearer {key}"}))
        if not is_good:
            return HTMLResponse(login_page(_home(scope), is_wrong=True), 401)
        response = RedirectResponse(_home(scope), 303)
        is_secure = scope.get("scheme") == "https"
        response.set_cookie(COOKIE, key, path=_home(scope), httponly=True, samesite="strict", secure=is_secure)
        return response

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._dashboard.begin()
        scope["state"] = {**scope.get("state", {}), "visitor": _with_key(scope)}
        pages = self._pages or await self._open()
        state = {**scope.get("state", {}), "dashboard": self._dashboard}
        await pages({**scope, "state": state}, receive, send)

    async def _open(self) -> ASGIApp:
        async with self._opening:
            if self._pages is None:
                self._pages = await self._load()
            return self._pages


def _with_key(scope: Scope) -> Headers:
    """The headers of a request to the page, as those of a request to the API would be."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    key = cookie_parser(headers.get("cookie", "")[:8_192]).get(COOKIE, "")
    if key and "authorization" not in headers:
        headers["authorization"] = f"Bearer {key[:MAX_KEY_LETTERS]}"
    return Headers(raw=headers.raw)


def _home(scope: Scope) -> str:
    return f"{scope.get('root_path', '')}/"


async def _body(receive: Receive) -> bytes:
    """A small one; more is cut off, since no key is that long."""
    body = b""
    while len(body) < MAX_LOGIN_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body[:MAX_LOGIN_BYTES]


def _guarded(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope={"type": "http", "headers": list(message.get("headers", ()))})
            headers.update(GUARDS)
            message = {**message, "headers": headers.raw}
        await send(message)

    return sending
