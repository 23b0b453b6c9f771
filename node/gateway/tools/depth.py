"""How deep JSON is nested."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64
"""Of a description of parameters, and of arguments: what is deeper, no parser of ours has to walk."""


def is_deep(value: Any) -> bool:
    """More than MAX_DEPTH lists and objects in each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            each for one in level for each in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
        if not level:
            return False
    return True
