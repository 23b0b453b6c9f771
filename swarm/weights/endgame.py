"""Which piece an idle source takes over from a much slower one.

When nothing is left to hand out, the last pieces are with sources that may be slow, or dead. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from swarm.weights.source_state import PieceId, SourceState

SLOWER = 2.0
"""How much later than the idle source the owner would have to deliver."""


class TakeOver(NamedTuple):
    """A piece that one source owes and another one is to be asked for; of several, the greatest comes first."""

    due_s: float
    """Until its owner delivers it."""
    is_silent: bool
    """All who owe it are silent, so that it will hardly come twice."""
    piece: PieceId


def take_over(
    source: str, sources: Mapping[str, SourceState], owners: Mapping[PieceId, Collection[str]], now_s: float
) -> TakeOver | None:
    """The piece of which the owner would deliver latest, and SLOWER times as late as the idle `source`, which has it.

    owners: by piece in flight. A piece that two of them owe is left to these, unless both are silent. None: there is no such piece.
    """
    mine = sources[source]
    talking = {name for name, owner in sources.items() if not owner.is_silent(now_s)}
    found: list[TakeOver] = []
    for owner in (one for name, one in sources.items() if name != source):
        ahead_bytes = 0
        for piece, length in owner.pieces.items():
            ahead_bytes += length
            owing, due_s = owners.get(piece, ()), owner.due_s(ahead_bytes, now_s)
            is_silent = not talking.intersection(owing)  # those who are silent do not shield each other's pieces
            is_free = bool(owing) and source not in owing and (len(owing) == 1 or is_silent)
            if is_free and mine.has(piece) and due_s > SLOWER * mine.due_s(length, now_s):
                found.append(TakeOver(due_s, is_silent, piece))
    return max(found, default=None)
