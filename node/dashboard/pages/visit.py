"""One visitor's page: its swarm, and what keeps it up to date."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from nicegui import ui
from starlette.datastructures import Headers
from starlette.types import Scope

from node.dashboard.dashboard import Dashboard

EVERY_S = 0.2
"""Between two looks of a page at what its watcher knows; the browser hears of changes only."""


def dashboard_here() -> Dashboard:
    """The one whose page is being built."""
    found: Dashboard = ui.context.client.request.scope["state"]["dashboard"]
    return found


def visitor_here() -> Headers:
    """Who looks at the page that is being built, by the headers of a request."""
    found: Headers = ui.context.client.request.scope["state"]["visitor"]
    return found


def home_here() -> str:
    """The address of the first page, with a slash at its end."""
    return f"{ui.context.client.request.scope.get('root_path', '')}/"


def is_part(scope: Scope) -> bool:
    """Does a request ask for a script or a message of a page that is open?"""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith(("/_nicegui/", "/_nicegui_ws/"))


def watch_runs() -> None:
    """While the visitor stays, the swarm's training runs are watched, too."""
    held = ExitStack()
    held.enter_context(dashboard_here().runs.visitors.watching())
    ui.context.client.on_delete(held.close)


def keep_up(draw: Callable[[], None], every_s: float = EVERY_S) -> None:
    """Draw now, and again and again while the visitor stays; meanwhile the swarm is watched closely."""
    held = ExitStack()
    held.enter_context(dashboard_here().watcher.visitors.watching())
    ui.context.client.on_delete(held.close)
    draw()
    ui.timer(every_s, draw)
