"""Cuts a long step into prefill chunks. Pure.

Several hops then work on one prompt at once. Also puts the answers together.

`want` is how many of each sequence's last tokens the caller needs (WANT_ALL: every one); a prefill chunk without any asks for nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols import tensors
from protocols.inference import WANT_ALL
from protocols.tensors import WireTensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of every sequence, and how many of the last of them are needed, in all and for each sequence."""

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    want: int
    needed: tuple[int, ...]


def plan(counts: Sequence[int], want: int, limit_tokens: int, limit_wanted: int | None = None) -> list[Chunk]:
    """Prefill chunks of at most `limit_tokens` tokens (at least one a sequence), in order. A step without tokens is one prefill chunk.

    limit_wanted: outputs of at most so many tokens of a prefill chunk come back. If more are needed, its sequences are divided among
    several prefill chunks.
    """
    share = max(1, limit_tokens // max(1, len(counts)))
    if limit_wanted is not None and (want == WANT_ALL or want > limit_wanted):
        share = min(share, limit_wanted)  # so that one sequence's part never exceeds it
    whole = (_chunk(counts, want, start, share) for start in range(0, max([*counts, 1]), share))
    if limit_wanted is None:
        return list(whole)
    return [part for chunk in whole for part in _taking_turns(chunk, limit_wanted)]


def _taking_turns(chunk: Chunk, limit: int) -> list[Chunk]:
    """The same tokens in parts of consecutive sequences, of which at most `limit` tokens each come back."""
    turns, turn, total = [], 0, 0
    for size in kept(chunk.want, chunk.counts):
        if total and total + size > limit:
            turn, total = turn + 1, 0
        turns.append(turn)
        total += size
    return [chunk] if turn == 0 else [_of_turn(chunk, turns, number) for number in range(turn + 1)]


def _of_turn(chunk: Chunk, turns: Sequence[int], turn: int) -> Chunk:
    """Part number `turn`: it sends the tokens of its own sequences; those before are sent already, those after not yet."""
    needed = tuple(count if own == turn else 0 for own, count in zip(turns, chunk.needed, strict=True))
    return Chunk(
        starts=tuple(
            start + (size if own < turn else 0) for own, start, size in zip(turns, chunk.starts, chunk.counts, strict=True)
        ),
        counts=tuple(size if own == turn else 0 for own, size in zip(turns, chunk.counts, strict=True)),
        want=WANT_ALL if chunk.want == WANT_ALL else max(needed),
        needed=needed,
    )


def _chunk(counts: Sequence[int], want: int, start: int, share: int) -> Chunk:
    if not start and max(counts, default=0) <= share:  # all of it: a decode's case, many times a second
        needed = kept(want, counts)
        return Chunk((0,) * len(counts), tuple(counts), want if want == WANT_ALL else max(needed, default=0), needed)
    starts = tuple(min(start, count) for count in counts)
    taken = tuple(min(share, count - begin) for count, begin in zip(counts, starts, strict=True))
    if want == WANT_ALL:
        return Chunk(starts, taken, WANT_ALL, taken)
    ends = [begin + size for begin, size in zip(starts, taken, strict=True)]
    needed = tuple(min(size, max(0, end - max(0, count - want))) for size, end, count in zip(taken, ends, counts, strict=True))
    return Chunk(starts, taken, max([*needed, 0]), needed)


def cut(chunk: Chunk, counts: Sequence[int], values: WireTensor) -> WireTensor:
    """The part of `values` [T, …] that belongs to `chunk`; in `values`, sequences follow each other with `counts` tokens each."""
    if chunk.counts == tuple(counts):
        return values
    pieces, at = [], 0
    for count, begin, size in zip(counts, chunk.starts, chunk.counts, strict=True):
        if size:
            pieces.append(tensors.cut(values, at + begin, at + begin + size))
        at += count
    return tensors.join(pieces or [tensors.cut(values, 0, 0)])


def cut_positions(chunk: Chunk, counts: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    """The same of a position per token."""
    kept: list[int] = []
    at = 0
    for count, start, size in zip(counts, chunk.starts, chunk.counts, strict=True):
        kept += positions[at + start : at + start + size]
        at += count
    return tuple(kept)


def join(chunks: Sequence[Chunk], outputs: Sequence[tuple[Sequence[int], WireTensor]]) -> WireTensor:
    """All needed tokens, sequence after sequence. outputs: (counts, values [T', …]) of each prefill chunk, as its `want` asked."""
    if len(chunks) == 1 and tuple(outputs[0][0]) == chunks[0].needed:
        return outputs[0][1]
    rows: list[list[WireTensor]] = [[] for _ in chunks[0].counts]
    for chunk, (counts, values) in zip(chunks, outputs, strict=True):
        at = 0
        for row, count, needed in zip(rows, counts, chunk.needed, strict=True):
            at += count
            if needed:
                row.append(tensors.cut(values, at - needed, at))
    return tensors.join([piece for row in rows for piece in row] or [tensors.cut(outputs[0][1], 0, 0)])


def kept(want: int, counts: Sequence[int]) -> tuple[int, ...]:
    """How many of each sequence's last tokens a step wants back."""
    return tuple(counts) if want == WANT_ALL else tuple([min(want, count) for count in counts])


def wanted(want: int, counts: Sequence[int]) -> list[tuple[int, int]] | None:
    """Where on the flat axis they are, as [start, stop), one after the other; None = everywhere."""
    keep = kept(want, counts)
    if keep == tuple(counts):
        return None
    places, at = [], 0
    for count, last in zip(counts, keep, strict=True):
        at += count
        if last:
            places.append((at - last, at))
    return places


def select(want: int, counts: Sequence[int], output: WireTensor) -> WireTensor:
    """The tokens that a step wants back: the last `want` of each sequence, all, or none."""
    places = wanted(want, counts)
    if places is None:
        return output
    return tensors.join([tensors.cut(output, *place) for place in places] or [tensors.cut(output, 0, 0)])
