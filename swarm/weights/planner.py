"""Which piece of one download is asked from which source.

Pure bookkeeping: it is told what arrives, and says what to request next.

Every source has a window of bytes in flight. It begins at one piece and grows with every piece that proves right, so a liar costs one
piece; it is bounded by what the source delivers in two seconds and by a fiftieth of the download, so a death costs little and a fast
source gets more.
What few sources hold goes first. When nothing is left to hand out, an idle source takes over pieces that a much slower one still
owes (the endgame), as long as the bytes that come twice stay below 2 %.
The idea is BitTorrent's (rarest first, endgame): https://bittorrent.org/bittorrentecon.pdf; the windows are TCP's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from protocols.pieces import MAX_ASKED, Run
from protocols.weights import PIECE_BYTES

MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 2 * PIECE_BYTES, 16 * PIECE_BYTES
WINDOW_S = 2.0
WINDOW_SHARE = 1 / 50
TWICE_SHARE = 1 / 50
"""Share of the download that may be asked twice (one piece always may)."""

SLOWER = 2.0
"""In the endgame: how much later than the idle source the owner would have to deliver."""

SILENT_S = 3.0
"""What a source owes that has sent nothing for so long may be taken over by all, whatever that share: it will hardly come twice."""

HASH_LISTS_AHEAD = 8
"""Lists of hashes that one source may owe."""

ENOUGH_LISTED = 32
"""Pieces with known hashes that wait for a source: with fewer, more lists are asked."""


class PieceId(NamedTuple):
    """A piece of a tensor, both by number."""

    tensor: int
    piece: int


@dataclass(frozen=True, slots=True)
class NextRequest:
    """What to request from one source now: lists of hashes first, then pieces. Empty = nothing."""

    hashes: tuple[int, ...] = ()
    runs: tuple[Run, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hashes or self.runs)


@dataclass(slots=True)
class _Source:
    held: Collection[int]
    order: list[int]
    hashes: set[int] = field(default_factory=set)
    pieces: dict[PieceId, int] = field(default_factory=dict)
    """In flight, with their lengths, in the order in which they were asked."""
    in_flight_bytes: int = 0
    num_proven: int = 0
    bytes_s: float = 0.0
    """Smoothed; 0 = nothing has arrived yet."""
    at_s: float = 0.0
    """When it was asked while idle, or last delivered."""


class Planner:
    """The state of one download. `now_s` is any clock that only grows."""

    def __init__(
        self, sizes: Mapping[int, int], missing: Mapping[int, Collection[int]], with_hashes: Collection[int] = ()
    ) -> None:
        """sizes: bytes of each tensor. missing: the pieces of each that are still to come. with_hashes: tensors whose list is known."""
        self._sizes = dict(sizes)
        self._missing = {tensor: set(pieces) for tensor, pieces in missing.items() if pieces}
        """Neither here nor in flight."""
        self._flying: dict[PieceId, set[str]] = {}
        self._listed = {tensor for tensor, size in sizes.items() if tensor in with_hashes or size <= PIECE_BYTES}
        self._sources: dict[str, _Source] = {}
        self.total_bytes = sum(
            self._length(PieceId(tensor, piece)) for tensor, pieces in self._missing.items() for piece in pieces
        )
        self._left = sum(map(len, self._missing.values()))
        self._twice_bytes = 0

    @property
    def is_done(self) -> bool:
        return self._left == 0

    @property
    def twice_bytes(self) -> int:
        """Asked from a second source while the first one, slow but not silent, still owed them."""
        return self._twice_bytes

    def _length(self, piece: PieceId) -> int:
        return min(PIECE_BYTES, self._sizes[piece.tensor] - piece.piece * PIECE_BYTES)

    # --- sources

    def add(self, source: str, held: Collection[int]) -> None:
        """A source and the tensors that it has; again: what it has now."""
        found = self._sources.setdefault(source, _Source((), []))
        found.held = frozenset(held)
        self._reorder()

    def drop(self, source: str) -> None:
        """It is gone: what it owes is to be had from others."""
        gone = self._sources.pop(source, None)
        for piece in gone.pieces if gone else ():
            self._land(source, piece)
        self._reorder()

    def _reorder(self) -> None:
        """The tensors of each source, those that the fewest have first."""
        holders = {tensor: sum(tensor in source.held for source in self._sources.values()) for tensor in self._sizes}
        order = sorted(self._sizes, key=lambda tensor: (holders[tensor], tensor))
        for source in self._sources.values():
            source.order = [tensor for tensor in order if tensor in source.held]

    def uncovered(self) -> frozenset[int]:
        """Tensors with pieces to come that no source has."""
        wanted = {*(tensor for tensor, pieces in self._missing.items() if pieces), *(piece.tensor for piece in self._flying)}
        return frozenset(tensor for tensor in wanted if not any(tensor in source.held for source in self._sources.values()))

    def can_help(self, source: str) -> bool:
        """True while there is a piece to come that this source has."""
        held = self._sources[source].held
        return any(tensor in held for tensor, pieces in self._missing.items() if pieces) or any(
            piece.tensor in held for piece in self._flying
        )

    def owes(self, source: str) -> bool:
        """True while an answer of this source is to come."""
        found = self._sources[source]
        return bool(found.hashes or found.pieces)

    def is_idle(self, source: str) -> bool:
        """True for a source of ours that owes nothing."""
        return source in self._sources and not self.owes(source)

    def is_asked(self, source: str, piece: PieceId) -> bool:
        return piece in self._sources[source].pieces

    def is_asked_hashes(self, source: str, tensor: int) -> bool:
        return tensor in self._sources[source].hashes

    # --- asking

    def window_bytes(self, source: str) -> int:
        """How many bytes this source may owe."""
        found = self._sources[source]
        limit = min(MAX_WINDOW_BYTES, max(MIN_WINDOW_BYTES, int(self.total_bytes * WINDOW_SHARE)))
        if found.bytes_s:
            limit = min(limit, max(PIECE_BYTES, int(found.bytes_s * WINDOW_S)))
        return min(limit, PIECE_BYTES * (1 + found.num_proven))

    def take(self, source: str, now_s: float) -> NextRequest:
        """What this source shall be asked now; it counts as asked."""
        found = self._sources[source]
        free_bytes = self.window_bytes(source) - found.in_flight_bytes
        was_idle = not self.owes(source)
        if free_bytes <= 0:
            return NextRequest()
        taken: list[PieceId] = []
        for piece in self._next(found):
            if len(taken) == MAX_ASKED or (free_bytes < self._length(piece) and (taken or not was_idle)):
                break
            free_bytes -= self._length(piece)
            taken.append(piece)
        hashes = self._next_lists(found, now_s)
        if not taken and not hashes and was_idle:
            taken = self._take_over(source, now_s)
        if was_idle and (taken or hashes):
            found.at_s = now_s
        found.hashes |= set(hashes)
        for piece in taken:
            self._missing.get(piece.tensor, set()).discard(piece.piece)
            self._flying.setdefault(piece, set()).add(source)
            found.pieces[piece] = self._length(piece)
            found.in_flight_bytes += self._length(piece)
        return NextRequest(hashes, tuple(_runs(taken)))

    def _next(self, source: _Source) -> Iterator[PieceId]:
        """Pieces that no source was asked for, of tensors whose hashes are known."""
        for tensor in source.order:
            if tensor in self._listed and self._missing.get(tensor):
                yield from (PieceId(tensor, piece) for piece in sorted(self._missing[tensor]))

    def _next_lists(self, source: _Source, now_s: float) -> tuple[int, ...]:
        """Lists of hashes that no source owes, silent ones left out."""
        ready = sum(len(self._missing.get(tensor, ())) for tensor in source.order if tensor in self._listed)
        if ready >= ENOUGH_LISTED:
            return ()
        owing = (other for other in self._sources.values() if other is source or now_s - other.at_s <= SILENT_S)
        asked = {tensor for other in owing for tensor in other.hashes}
        wanted = (
            tensor for tensor in source.order if tensor not in self._listed and tensor not in asked and self._missing.get(tensor)
        )
        return tuple(tensor for _, tensor in zip(range(HASH_LISTS_AHEAD - len(source.hashes)), wanted, strict=False))

    def _take_over(self, source: str, now_s: float) -> list[PieceId]:
        """One piece that the slowest of its owners would deliver much later than this idle source."""
        mine = self._sources[source]
        talking = {name for name, owner in self._sources.items() if now_s - owner.at_s <= SILENT_S}
        candidates: list[tuple[float, bool, PieceId]] = []
        for owner_name, owner in self._sources.items():
            if owner_name == source:
                continue
            ahead = 0
            for piece, length in owner.pieces.items():
                ahead += length
                owners, due_s = self._flying.get(piece, set()), _due_s(owner, ahead, now_s)
                is_alone = len(owners) == 1 or not owners & talking  # those who are silent do not shield each other's pieces
                is_mine = piece.tensor in mine.held and bool(owners) and source not in owners
                if is_mine and is_alone and due_s > SLOWER * _due_s(mine, length, now_s):
                    candidates.append((due_s, not owners & talking, piece))
        if not candidates:
            return []
        _due, is_silent, slowest = max(candidates)
        if not is_silent:
            if self._twice_bytes + self._length(slowest) > max(self.total_bytes * TWICE_SHARE, PIECE_BYTES):
                return []
            self._twice_bytes += self._length(slowest)
        return [slowest]

    # --- arriving

    def listed(self, source: str, tensor: int, now_s: float) -> None:
        """A verified list of hashes came."""
        self._listed.add(tensor)
        self._sources[source].hashes.discard(tensor)
        self._sources[source].at_s = now_s

    def arrived(self, source: str, piece: PieceId, now_s: float) -> bool:
        """A piece came; False where another source was faster, so that it is of no use. It is not proven yet."""
        found = self._sources[source]
        length = found.pieces.pop(piece)
        found.in_flight_bytes -= length
        took_s = max(now_s - found.at_s, 1e-6)
        found.at_s = now_s
        weight = (
            1 - math.exp(-took_s) if found.bytes_s else 1.0
        )  # by time, so that pieces that come in bursts do not count as fast
        found.bytes_s += weight * (length / took_s - found.bytes_s)
        return piece in self._flying

    def proven(self, source: str, piece: PieceId) -> bool:
        """The piece is right, and stored; False where it was before."""
        if source in self._sources:
            self._sources[source].num_proven += 1
        if self._flying.pop(piece, None) is None:
            return False
        self._left -= 1
        return True

    def _land(self, source: str, piece: PieceId) -> None:
        """`source` will not deliver this; if no other source was asked for it, it is missing again."""
        owners = self._flying.get(piece)
        if owners is None:
            return
        owners.discard(source)
        if not owners:
            del self._flying[piece]
            self._missing.setdefault(piece.tensor, set()).add(piece.piece)

    def failed(self, source: str, piece: PieceId) -> None:
        """What arrived was not right: it is to be had from another."""
        self._land(source, piece)


def _due_s(source: _Source, num_bytes: int, now_s: float) -> float:
    """Seconds until a source delivers the first `num_bytes` of what it owes; the longer it is silent, the later."""
    silent_s = now_s - source.at_s if source.pieces else 0.0
    if not source.bytes_s:
        return silent_s if source.pieces else 0.0
    due_s = num_bytes / source.bytes_s
    return due_s + (silent_s if silent_s > due_s else 0.0)


def _runs(pieces: list[PieceId]) -> Iterator[Run]:
    """Consecutive pieces joined, in the order given."""
    start, count = None, 0
    for piece in pieces:
        if start and piece == PieceId(start.tensor, start.piece + count):
            count += 1
            continue
        if start:
            yield Run(start.tensor, start.piece, count)
        start, count = piece, 1
    if start:
        yield Run(start.tensor, start.piece, count)
