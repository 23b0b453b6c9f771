"""Which piece of one download is asked from which source.

Pure bookkeeping: it is told what arrives, and says what to request next.

Every source has a window of bytes in flight. It begins at one piece and grows with every piece that proves right, so a liar costs one
piece; it is bounded by what the source delivers in two seconds and by a fiftieth of the download, so a death costs little and a fast
source gets more.
What few sources hold goes first. When nothing is left to hand out, an idle source takes over pieces that a much slower one still
owes (`endgame.py`), as long as the bytes that come twice stay below 2 %.
The idea is BitTorrent's (rarest first, endgame): https://bittorrent.org/bittorrentecon.pdf; the windows are TCP's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from protocols.masks import indices_of
from protocols.pieces import MAX_ASKED, Run
from protocols.weights import PIECE_BYTES
from swarm.weights.bitmap import Bitmap
from swarm.weights.endgame import take_over
from swarm.weights.source_state import Held, PieceId, SourceState

TWICE_SHARE = 1 / 50
"""Share of the download that may be asked twice (one piece always may)."""

HASH_LISTS_AHEAD = 8
"""Lists of hashes that one source may owe."""

ENOUGH_LISTED = 32
"""Pieces with known hashes that wait for a source: with fewer, more lists are asked."""


@dataclass(frozen=True, slots=True)
class NextRequest:
    """What to request from one source now: lists of hashes first, then pieces. Empty = nothing."""

    hashes: tuple[int, ...] = ()
    runs: tuple[Run, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hashes or self.runs)


class Planner:
    """The state of one download. `now_s` is any clock that only grows."""

    def __init__(
        self, sizes: Mapping[int, int], missing: Mapping[int, Collection[int]], with_hashes: Collection[int] = ()
    ) -> None:
        """sizes: bytes of each tensor. missing: the pieces of each that are still to come. with_hashes: tensors whose list is known."""
        self._sizes = dict(sizes)
        self._missing = {tensor: Bitmap.of(self._num_pieces(tensor), pieces).mask for tensor, pieces in missing.items()}
        """By tensor, a mask of pieces: neither here nor in flight."""
        self._flying: dict[PieceId, set[str]] = {}
        self._listed = {tensor for tensor, size in sizes.items() if tensor in with_hashes or size <= PIECE_BYTES}
        self._sources: dict[str, SourceState] = {}
        self.total_bytes = sum(self._length(PieceId(tensor, piece)) for tensor, pieces in missing.items() for piece in pieces)
        self._left = sum(map(int.bit_count, self._missing.values()))
        self._twice_bytes = 0

    @property
    def is_done(self) -> bool:
        return self._left == 0

    @property
    def twice_bytes(self) -> int:
        """Asked from a second source while the first one, slow but not silent, still owed them."""
        return self._twice_bytes

    def _num_pieces(self, tensor: int) -> int:
        return -(-self._sizes[tensor] // PIECE_BYTES)

    def _length(self, piece: PieceId) -> int:
        return min(PIECE_BYTES, self._sizes[piece.tensor] - piece.piece * PIECE_BYTES)

    # --- sources

    def add(self, source: str, held: Held) -> None:
        """A source and what it has; again: what it has now."""
        self._sources.setdefault(source, SourceState()).held = held
        self._reorder()

    def drop(self, source: str) -> None:
        """It is gone: what it owes is to be had from others."""
        gone = self._sources.pop(source, None)
        for piece in gone.pieces if gone else ():
            self._land(source, piece)
        self._reorder()

    def _reorder(self) -> None:
        """The tensors of each source, those that the fewest have first, whole or in part."""
        holders = {tensor: sum(tensor in source.held for source in self._sources.values()) for tensor in self._sizes}
        order = sorted(self._sizes, key=lambda tensor: (holders[tensor], tensor))
        for source in self._sources.values():
            source.order = [tensor for tensor in order if tensor in source.held]

    def uncovered(self) -> frozenset[int]:
        """Tensors of which a piece is to come that no source has."""
        missing = {tensor for tensor, mask in self._missing.items() if self._uncovered(tensor, mask)}
        return frozenset(missing | {tensor for tensor, piece in self._flying if self._uncovered(tensor, 1 << piece)})

    def _uncovered(self, tensor: int, mask: int) -> int:
        """Those of these pieces that no source has."""
        for source in self._sources.values():
            mask ^= source.among(tensor, mask)
        return mask

    def can_help(self, source: str) -> bool:
        """True while there is a piece to come that this source has."""
        found = self._sources[source]
        return any(found.among(tensor, mask) for tensor, mask in self._missing.items()) or any(map(found.has, self._flying))

    def owes(self, source: str) -> bool:
        """True while an answer of this source is to come."""
        return self._sources[source].is_owing

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
        return self._sources[source].window_bytes(self.total_bytes)

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
            self._missing[piece.tensor] &= ~(1 << piece.piece)
            self._flying.setdefault(piece, set()).add(source)
            found.ask(piece, self._length(piece))
        return NextRequest(hashes, tuple(_runs(taken)))

    def _next(self, source: SourceState) -> Iterator[PieceId]:
        """Pieces of this source that no source was asked for, of tensors whose hashes are known."""
        for tensor in source.order:
            if (mask := self._missing.get(tensor)) and tensor in self._listed:
                yield from (PieceId(tensor, piece) for piece in self._rarest_first(tensor, source.among(tensor, mask)))

    def _rarest_first(self, tensor: int, mask: int) -> Iterator[int]:
        """These pieces, in the order in which more sources have them."""
        with_holders = [mask]  # number n: those that n of the sources have which have this tensor in part
        for held in (source.held.get(tensor) for source in self._sources.values()):
            if held is not None:
                with_holders.append(0)
                for num in range(len(with_holders) - 1, 0, -1):
                    moved = with_holders[num - 1] & held
                    with_holders[num - 1] ^= moved
                    with_holders[num] |= moved
        return (piece for pieces in with_holders for piece in indices_of(pieces))

    def _next_lists(self, source: SourceState, now_s: float) -> tuple[int, ...]:
        """Lists of hashes that no source owes, silent ones left out."""
        ready = 0
        for tensor in source.order:
            if (mask := self._missing.get(tensor)) and tensor in self._listed:
                ready += source.among(tensor, mask).bit_count()
                if ready >= ENOUGH_LISTED:
                    return ()
        owing = (other for other in self._sources.values() if other is source or not other.is_silent(now_s))
        asked = {tensor for other in owing for tensor in other.hashes}
        unlisted = (tensor for tensor in source.order if tensor not in self._listed and tensor not in asked)
        wanted = (tensor for tensor in unlisted if source.among(tensor, self._missing.get(tensor, 0)))
        return tuple(tensor for _, tensor in zip(range(HASH_LISTS_AHEAD - len(source.hashes)), wanted, strict=False))

    def _take_over(self, source: str, now_s: float) -> list[PieceId]:
        """One piece that a much slower source owes, as long as not too much comes twice."""
        found = take_over(source, self._sources, self._flying, now_s)
        if found is None:
            return []
        if not found.is_silent:
            if self._twice_bytes + self._length(found.piece) > max(self.total_bytes * TWICE_SHARE, PIECE_BYTES):
                return []
            self._twice_bytes += self._length(found.piece)
        return [found.piece]

    # --- arriving

    def listed(self, source: str, tensor: int, now_s: float) -> None:
        """A verified list of hashes came."""
        self._listed.add(tensor)
        self._sources[source].hashes.discard(tensor)
        self._sources[source].at_s = now_s

    def arrived(self, source: str, piece: PieceId, now_s: float) -> bool:
        """A piece came; False where another source was faster, so that it is of no use. It is not proven yet."""
        self._sources[source].deliver(piece, now_s)
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
            self._missing[piece.tensor] |= 1 << piece.piece

    def failed(self, source: str, piece: PieceId) -> None:
        """What arrived was not right: it is to be had from another."""
        self._land(source, piece)


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
