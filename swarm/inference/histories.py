"""Retained sequences as History frames, cut out one by one.

Each has some tokens of each sequence, of one kind.

Sequences that share pieces may be far longer together than what is kept of them, so none is put together as a whole: a frame takes its
own tokens from the pieces, and how many frames there will be is computed from lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocols import tensors
from protocols.defaults import WINDOW_BYTES
from protocols.ids import SessionId
from protocols.inference import History
from swarm.inference.pieces import Piece, PieceRow

HISTORY_PART_TOKENS = 512
"""Tokens of one History frame: also the longest forward that a replay asks of a hop."""

Runs = tuple[tuple[str, int], ...]
"""(kind, tokens) one after the other."""


def cut(rows: Sequence[PieceRow], empty: Piece, session: SessionId, epoch: int, base: int) -> Iterator[History]:
    """Rounds of at most HISTORY_PART_TOKENS tokens and WINDOW_BYTES bytes (but a token a sequence), a part of each sequence a round.

    `rows` must not change meanwhile. empty: what a history without tokens carries.
    """
    is_placed = any(row.is_placed for row in rows)
    widest = max([row.widest for row in rows], default=1)
    share = max(1, min(HISTORY_PART_TOKENS, WINDOW_BYTES // widest) // max(1, len(rows)))
    runs = [row.runs for row in rows]
    num_parts = num_rounds(runs, share)
    readers = [_Reader(row) for row in rows]
    for part, counts in enumerate(rounds(runs, share)):
        places: list[int] = []
        found: list[Piece] = []
        for reader, count in zip(readers, counts, strict=True):
            if count:
                found += reader.take(count, places if is_placed else None)
        full = found or [empty]
        yield History(
            session=session,
            epoch=epoch,
            base=base,
            counts=counts,
            payload=tensors.join([piece.values for piece in full]),
            positions=tuple(places) if is_placed else None,
            part=part,
            parts=num_parts,
            kind=full[0].kind,
        )


class _Reader:
    """Reads a sequence from its first token on."""

    def __init__(self, row: PieceRow) -> None:
        self._pieces = row.pieces
        self._rest: Piece | None = None
        self._at = 0

    def take(self, count: int, places: list[int] | None) -> list[Piece]:
        """The next `count` tokens, of which there are as many; their positions go to `places`, their own or those by default."""
        found = []
        while count:
            piece = self._rest or next(self._pieces)
            size = min(count, piece.length)
            self._rest = piece.part(size, piece.length) if size < piece.length else None
            if size:
                found.append(piece.part(0, size))
                if places is not None:
                    places += range(self._at, self._at + size) if piece.positions is None else piece.positions[:size]
            self._at += size
            count -= size
        return found


def rounds(runs: Sequence[Runs], share: int) -> Iterator[tuple[int, ...]]:
    """How many tokens of each sequence go in which round: at most `share`, of one kind, that of the first sequence with tokens left.

    There is one round at least.
    """
    at = [(0, 0) for _ in runs]
    while True:
        kind = next((own[run][0] for (run, _), own in zip(at, runs, strict=True) if run < len(own)), "")
        counts = []
        for row, ((run, start), own) in enumerate(zip(at, runs, strict=True)):
            is_turn = run < len(own) and own[run][0] == kind
            count = min(share, own[run][1] - start) if is_turn else 0
            counts.append(count)
            if is_turn:
                at[row] = (run + 1, 0) if start + count == own[run][1] else (run, start + count)
        yield tuple(counts)
        if all(run == len(own) for (run, _), own in zip(at, runs, strict=True)):
            return


def num_rounds(runs: Sequence[Runs], share: int) -> int:
    """How many `rounds` there are. Sequences of the same length and kinds go together, so one of each is enough."""
    distinct = list(dict.fromkeys(runs))
    if len({kind for own in distinct for kind, _ in own}) <= 1:
        longest = max([sum([tokens for _, tokens in own]) for own in distinct], default=0)
        return max(1, -(-longest // share))
    return sum(1 for _ in rounds(distinct, share))
