"""Which paths are those of the page that shows the swarm."""

from __future__ import annotations

from starlette.types import Scope

PAGE = "/page"
"""Where it is."""


def is_page(scope: Scope) -> bool:
    """Is a request about the page, and not about the APIs? The page asks its visitors for a key itself."""
    path: str = scope["path"]
    return path == PAGE or path.startswith(f"{PAGE}/")
