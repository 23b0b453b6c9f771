"""All pages as one ASGI application, which NiceGUI serves.

NiceGUI has one application in a process, whatever serves it. So it is set up once, and each request says which swarm it is about
(`visit.py`). It runs from the first request on.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from fastapi import FastAPI
from nicegui import Client, ui
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from node.dashboard.pages import chat_page, map_page, missing_page, peer_page, training_page, what_if_page
from node.dashboard.pages.visit import is_part

RECONNECT_S = 10.0
"""How long a page whose connection broke is kept."""

GONE = "No response returned."
"""What Starlette's middleware raises if the browser has left before its answer was ready."""

ICON = Path(__file__).with_name("icon.svg")


def _set_up() -> FastAPI:
    host = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for page in (map_page, chat_page, peer_page, training_page, what_if_page, missing_page):
        page.register()
    ui.run_with(
        host, title="Murmuration", favicon=ICON, dark=None, tailwind=False, reconnect_timeout=RECONNECT_S, binding_refresh_interval=None,
        show_welcome_message=False, message_history_length=0,
    )  # fmt: skip
    return host


HOST = _set_up()


class Site:
    """One mount of the pages."""

    def __init__(self, max_visitors: int) -> None:
        self._most = max_visitors

    async def start(self) -> None:
        """On the loop that serves, before the first request."""
        await _RUNNING.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(Client.instances) >= self._most * (2 if is_part(scope) else 1):
            text = f"{self._most} visitors are here, as many as may be at once; come again in a minute"
            await PlainTextResponse(text, 503, {"retry-after": "60"})(scope, receive, send)
            return
        try:
            await HOST(scope, receive, send)
        except RuntimeError as error:
            if str(error) != GONE:
                raise


class _Running:
    """NiceGUI's own tasks: they belong to the event loop that serves."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = AsyncExitStack()

    async def start(self) -> None:
        """Again: does nothing, unless another loop serves now (in tests)."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._held = loop, AsyncExitStack()
            await self._held.enter_async_context(HOST.router.lifespan_context(HOST))


_RUNNING = _Running()
