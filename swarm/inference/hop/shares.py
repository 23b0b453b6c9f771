"""Which sessions end if a node is short of something.

Those of the client that holds most in all, its largest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def to_give_way(sessions: Iterable[T], client: Callable[[T], object], size: Callable[[T], int], limit: int) -> list[T]:
    """Which sessions must give theirs up until the rest holds `limit` at most."""
    own: dict[object, list[tuple[int, T]]] = defaultdict(list)
    for session in sessions:
        own[client(session)].append((size(session), session))
    for held in own.values():
        held.sort(key=lambda one: one[0])
    totals = {who: sum(one[0] for one in held) for who, held in own.items()}
    found: list[T] = []
    while sum(totals.values()) > limit:
        most = max(totals, key=lambda who: totals[who])
        num_bytes, session = own[most].pop()
        totals[most] -= num_bytes
        found.append(session)
    return found
