"""What a node tells its owner: lines of `kind: text`.

Each is one line for a person or a script.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person, or a script, wants to know: one line, `kind: text`."""

    kind: str
    text: str = ""


OnEvent = Callable[[Event], None]
