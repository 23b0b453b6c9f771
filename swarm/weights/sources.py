"""How a model is written by people: a name, a digest, or both. Pure."""

from __future__ import annotations

import re

from protocols.errors import ModelNotFoundError

MIN_PREFIX = 6
"""Letters of a digest that may stand for it."""

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


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
