"""The page that shows the swarm, as a part of an application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from node.dashboard.dashboard import Dashboard
from node.dashboard.door import Door
from node.gateway.http.page_path import PAGE

if TYPE_CHECKING:
    from node.dashboard.pages.site import Site

MAX_VISITORS = 64
"""Pages that are open at once, each with a state of its own here."""


def mount(app: FastAPI, dashboard: Dashboard) -> Door:
    """Serve it, and lead there from `/`."""
    door = Door(dashboard, _pages)
    app.mount(PAGE, door, "page")

    @app.get("/", include_in_schema=False)
    async def page() -> RedirectResponse:
        return RedirectResponse(f"{PAGE}/")

    @app.head("/", include_in_schema=False)
    async def is_there() -> Response:
        """Ollama's command asks so whether a server is there."""
        return Response()

    return door


async def _pages() -> ASGIApp:
    site = (await asyncio.to_thread(_imported))(MAX_VISITORS)
    await site.start()
    return site


def _imported() -> type[Site]:
    from node.dashboard.pages.site import Site  # 0.4 s of imports

    return Site
