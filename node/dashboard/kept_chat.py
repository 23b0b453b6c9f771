"""A conversation that the visitor's browser keeps while its tab is open.

The browser gives it back when the page is opened again, so it is a visitor's input as any other: checked and bounded here. It is kept under
a tag of the visitor's key; the form that asks for a key removes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers

PREFIX = "murmuration chat "
"""What the names begin with under which browsers keep conversations."""

MAX_KEPT_LETTERS = 150_000
"""Of a conversation that is given back: the newest messages. A browser's message to the gateway has 1 MB at most."""

MAX_KEPT_TURNS = 200
MAX_TOLD = 300
"""Letters of what stands below an answer."""

MAX_JSON_LETTERS = 1_000_000
MAX_SETTING = 1e12
MAX_NAME = 300
MAX_SYSTEM = 20_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: str
    """`user` or `assistant`."""
    text: str
    told: str = ""
    """Of an answer: how many tokens it had, how fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptChat:
    """A conversation with its settings."""

    model: str = ""
    system: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


def tag_of(visitor: Headers) -> str:
    """The name under which a visitor's browser keeps a conversation; it does not tell the key."""
    key = visitor.get("authorization", "")
    return PREFIX + (hashlib.sha256(PREFIX.encode() + key.encode()).hexdigest()[:32] if key else "without a key")


def parse_kept(given: object) -> KeptChat:
    """What a browser gave back. What is no conversation is an empty one: it is only the visitor's own. Pure."""
    table = _table(given)
    settings = table.get("settings")
    return KeptChat(
        model=_text(table.get("model"), MAX_NAME),
        system=_text(table.get("system"), MAX_SYSTEM),
        settings={
            name[:MAX_NAME]: float(value)
            for name, value in (list(settings.items())[:16] if isinstance(settings, dict) else ())
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SETTING
        },
        turns=_newest(table.get("turns")),
    )


def _table(given: object) -> Mapping[str, object]:
    if not isinstance(given, str) or len(given) > MAX_JSON_LETTERS:
        return {}
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _newest(given: object) -> tuple[Turn, ...]:
    """The newest messages of a list, up to the first that is none and within the bounds; the first one is the user's."""
    found, num_letters = list[Turn](), 0
    items: list[object] = given[-MAX_KEPT_TURNS:] if isinstance(given, list) else []
    for item in reversed(items):
        turn = _turn(item)
        num_letters += len(turn.text) if turn else 0
        if turn is None or num_letters > MAX_KEPT_LETTERS:
            break
        found.append(turn)
    while found and found[-1].role != "user":
        found.pop()
    return tuple(reversed(found))


def _turn(item: object) -> Turn | None:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(one, str) for one in item):
        return None
    role, text, told = item
    return Turn(role, text, told[:MAX_TOLD]) if role in ("user", "assistant") and text else None


def _text(value: object, longest: int) -> str:
    return value[:longest] if isinstance(value, str) else ""
