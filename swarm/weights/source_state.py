"""One source as a download's planner sees it: held, owed, delivered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from protocols.weights import PIECE_BYTES

MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 2 * PIECE_BYTES, 16 * PIECE_BYTES
WINDOW_S = 2.0
WINDOW_SHARE = 1 / 50

SILENT_S = 3.0
"""Seconds without an answer after which any source that has them may take over the pieces that this source owes, also beyond
`planner.TWICE_SHARE`: they will hardly come twice."""

Held = Mapping[int, int | None]
"""What a source has, by tensor: the pieces of one that it has in part, as a mask; None for a whole one. Bit n of a mask is piece n."""


class PieceId(NamedTuple):
    """A piece of a tensor, both by number."""

    tensor: int
    piece: int


@dataclass(slots=True)
class SourceState:
    """What one source has and owes, and how fast it delivers."""

    held: Held = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    """The tensors that it is to be asked about, in this order."""
    hashes: set[int] = field(default_factory=set)
    """Tensors whose lists of hashes it owes."""
    pieces: dict[PieceId, int] = field(default_factory=dict)
    """In flight, with their lengths, in the order in which they were asked."""
    in_flight_bytes: int = 0
    num_proven: int = 0
    bytes_s: float = 0.0
    """Smoothed; 0 = nothing has arrived yet."""
    at_s: float = 0.0
    """When it was asked while idle, or last delivered."""

    @property
    def is_owing(self) -> bool:
        """True while an answer is to come."""
        return bool(self.hashes or self.pieces)

    def is_silent(self, now_s: float) -> bool:
        return now_s - self.at_s > SILENT_S

    # --- what it has

    def among(self, tensor: int, mask: int) -> int:
        """Those of these pieces of a tensor that it has."""
        held = self.held.get(tensor)
        if held is not None:
            return mask & held
        return mask if tensor in self.held else 0

    def has(self, piece: PieceId) -> bool:
        return bool(self.among(piece.tensor, 1 << piece.piece))

    # --- what it owes

    def window_bytes(self, total_bytes: int) -> int:
        """How many bytes it may owe, of a download of so many."""
        limit = min(MAX_WINDOW_BYTES, max(MIN_WINDOW_BYTES, int(total_bytes * WINDOW_SHARE)))
        if self.bytes_s:
            limit = min(limit, max(PIECE_BYTES, int(self.bytes_s * WINDOW_S)))
        return min(limit, PIECE_BYTES * (1 + self.num_proven))

    def ask(self, piece: PieceId, num_bytes: int) -> None:
        """It was asked for a piece."""
        self.pieces[piece] = num_bytes
        self.in_flight_bytes += num_bytes

    def deliver(self, piece: PieceId, now_s: float) -> None:
        """A piece came that it was asked for. The speed is smoothed by time, so pieces that come in bursts do not count as fast."""
        length = self.pieces.pop(piece)
        self.in_flight_bytes -= length
        took_s = max(now_s - self.at_s, 1e-6)
        self.at_s = now_s
        weight = 1 - math.exp(-took_s) if self.bytes_s else 1.0
        self.bytes_s += weight * (length / took_s - self.bytes_s)

    def due_s(self, num_bytes: int, now_s: float) -> float:
        """Seconds until it delivers the first `num_bytes` of what it owes; the longer it is silent, the later."""
        silent_s = now_s - self.at_s if self.pieces else 0.0
        if not self.bytes_s:
            return silent_s
        due_s = num_bytes / self.bytes_s
        return due_s + (silent_s if silent_s > due_s else 0.0)
