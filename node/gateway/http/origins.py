"""Web pages of other origins that may use the APIs (CORS)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from node.gateway.http.browsers import ANY
from node.gateway.http.page_path import is_page
from protocols.errors import ConfigError

PREFLIGHT_S = 600
"""For which a browser remembers that an origin may ask."""

READABLE = (
    "retry-after", "server-timing", "x-request-id", "request-id",
    *(f"x-ratelimit-{which}-{what}" for which in ("limit", "remaining", "reset") for what in ("requests", "tokens")),
)  # fmt: skip
"""Headers of responses that scripts of other origins may read."""


class Origins:
    """ASGI middleware: pages of these origins may use the APIs (CORS). None = no page of others may. Our own page is for itself only."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._shared = CORSMiddleware(
            app, origins, ("GET", "POST"), ("*",), expose_headers=READABLE, max_age=PREFLIGHT_S
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_shared = scope["type"] == "http" and not is_page(scope)
        await (self._shared if is_shared else self._app)(scope, receive, send)


def checked_origins(origins: Sequence[str], needs_key: bool) -> tuple[str, ...]:
    """Origins as browsers write them; ConfigError if one is none, or if any page could ask without a key."""
    for origin in origins:
        if origin == ANY and not needs_key:
            raise ConfigError(
                "--allow-origin *: without keys, every web page that you look at could ask in your name; "
                "make a key first (swarm keys add NAME), or name the origins"
            )
        parts = urlsplit(origin)
        if origin != ANY and (
            parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}".lower()
        ):
            raise ConfigError(
                f"--allow-origin {origin[:100]}: expected scheme, host and port alone, as https://chat.example:8443"
            )
    return tuple(origins)
