"""Why p2pd could not connect to a peer, in a few words."""

from __future__ import annotations

PAUSED = "p2pd pauses after failed dials"
"""It has not dialled at all."""


def reason(error: BaseException) -> str:
    """What p2pd says after the address that it dialled last; before that it repeats the peer and its addresses."""
    text = " ".join(str(error).split()).rpartition("] ")[2].removeprefix("dial ")
    return PAUSED if text == "backoff" else text[:200]


def is_paused(error: BaseException) -> bool:
    """Has p2pd not dialled, in an error that ends with its reason?"""
    return str(error).endswith(PAUSED)
