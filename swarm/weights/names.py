"""How people write a model's name, and what a misspelt one means.

Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from protocols.errors import ModelNotFoundError

MIN_PREFIX = 6
"""Letters of a digest that may stand for it."""

_PREFIX = re.compile(r"[0-9a-f]{6,64}")

MAX_SHOWN = 8
"""Names in one message."""

MAX_LETTERS = 80
"""Of a name in a message: names are other people's text."""

NEAR = 0.75
"""A served name counts as meant from this similarity on (difflib's ratio, from 0 to 1, of the lower-case last parts)."""


def split_name(text: str) -> tuple[str, str]:
    """(name, digest or its beginning) of `name`, `name@digest` or a digest alone; "" for what is not given."""
    name, at, digest = text.rpartition("@")
    if at:
        if not _PREFIX.fullmatch(digest):
            raise ModelNotFoundError(
                f"what follows the @ is a digest, or at least {MIN_PREFIX} letters of one, got {digest[:80]!r}"
            )
        return name, digest
    return text, ""


def is_digest(text: str) -> bool:
    """May this stand for a digest on its own?"""
    return bool(_PREFIX.fullmatch(text))


def nearest_first(text: str, names: Collection[str]) -> list[str]:
    """`names` but the one that is asked for, the most similar first."""
    asked = split_name(text)[0]
    return sorted((name for name in names if name != asked), key=lambda name: (-_similarity(asked, name), name))


def is_misspelt(text: str, names: Collection[str]) -> bool:
    """True if the swarm does not serve this name, but one that is so similar that it was probably meant."""
    asked = split_name(text)[0]
    others = nearest_first(text, names)
    return asked not in names and bool(others) and _similarity(asked, others[0]) >= NEAR


def not_served(text: str, names: Collection[str]) -> ModelNotFoundError:
    """What to say about a name that the swarm does not serve, if it serves others."""
    others = [name[:MAX_LETTERS] for name in nearest_first(text, names)]
    meant = f"; did you mean {others[0]}?" if is_misspelt(text, names) else ""
    return ModelNotFoundError(f"the swarm serves no model named {text[:120]!r}{meant or ';'} it serves {_listed(others)}")


def served_too(text: str, names: Collection[str]) -> str:
    """For the end of an error about a name that was looked for elsewhere, too; empty if the swarm serves nothing."""
    others = [name[:MAX_LETTERS] for name in nearest_first(text, names)]
    return f"; the swarm serves {_listed(others)}" if others else ""


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_SHOWN
    return ", ".join(names[:MAX_SHOWN]) + (f" and {more} more (swarm status lists them)" if more > 0 else "")


def _similarity(asked: str, name: str) -> float:
    """People write `owner/Model` for what is served as `model`, so the last parts are compared."""
    ours, theirs = (text.rpartition("/")[2].lower() for text in (asked, name))
    return difflib.SequenceMatcher(None, ours, theirs).ratio()
