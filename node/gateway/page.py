"""The page that shows the swarm, as a part of an application."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Scope

from node.dashboard.dashboard import Dashboard
from node.dashboard.door import Door

PAGE = "/page"
"""Where it is."""

MAX_VISITORS = 64
"""Pages that are open at once, each with a state of its own here."""


def is_page(scope: Scope) -> bool:
    """Is a request about the page, and not about the APIs? The page asks its visitors for a key itself."""
    path: str = scope["path"]
    return path == PAGE or path.startswith(f"{PAGE}/")


def mount(app: FastAPI, dashboard: Dashboard) -> None:
    """Serve it, and lead there from `/`."""
    app.mount(PAGE, Door(dashboard, _pages), "page")

    @app.get("/", include_in_schema=False)
    async def page() -> RedirectResponse:
        return RedirectResponse(f"{PAGE}/")


def _pages() -> ASGIApp:
    from node.dashboard.pages.site import Site  # 0.4 s of imports

    return Site(MAX_VISITORS)
