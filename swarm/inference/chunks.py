"""Cutting a long step into chunks, so that several hops work on one prompt at once; and putting the answers together. Pure.

`want` is how many of each row's last tokens the caller needs (WANT_ALL: every one): chunks without any ask for nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.inference import WANT_ALL


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of every row, and how many of the last of them are needed, in all and row by row."""

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    want: int
    needed: tuple[int, ...]


def plan(counts: Sequence[int], want: int, limit_tokens: int) -> list[Chunk]:
    """Chunks of at most `limit_tokens` tokens (but at least one a row), in order. Never empty: a step without tokens is one chunk."""
    share = max(1, limit_tokens // max(1, len(counts)))
    return [_chunk(counts, want, start, share) for start in range(0, max([*counts, 1]), share)]


def _chunk(counts: Sequence[int], want: int, start: int, share: int) -> Chunk:
    starts = tuple(min(start, count) for count in counts)
    taken = tuple(min(share, count - begin) for count, begin in zip(counts, starts, strict=True))
    if want == WANT_ALL:
        return Chunk(starts, taken, WANT_ALL, taken)
    ends = [begin + size for begin, size in zip(starts, taken, strict=True)]
    needed = tuple(min(size, max(0, end - max(0, count - want))) for size, end, count in zip(taken, ends, counts, strict=True))
    return Chunk(starts, taken, max([*needed, 0]), needed)


def cut(chunk: Chunk, counts: Sequence[int], values: Tensor) -> Tensor:
    """The chunk's tokens of `values` [T, …], whose rows follow each other with `counts` tokens each."""
    if chunk.counts == tuple(counts):
        return values
    pieces = values.split(list(counts))
    return torch.cat([piece[begin : begin + size] for piece, begin, size in zip(pieces, chunk.starts, chunk.counts, strict=True)])


def join(chunks: Sequence[Chunk], outputs: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """All needed tokens, row after row: outputs are (counts, values [T', H]) of each chunk, as its `want` asked."""
    if len(chunks) == 1 and tuple(outputs[0][0]) == chunks[0].needed:
        return outputs[0][1]
    rows: list[list[Tensor]] = [[] for _ in chunks[0].counts]
    for chunk, (counts, values) in zip(chunks, outputs, strict=True):
        for row, piece, needed in zip(rows, values.split(list(counts)), chunk.needed, strict=True):
            row.append(piece[len(piece) - needed :])
    return torch.cat([piece for row in rows for piece in row])


def select(want: int, counts: Sequence[int], output: Tensor) -> tuple[list[int], Tensor]:
    """The tokens that a step wants back: (counts, values), the last `want` of each row, all, or none."""
    if want == WANT_ALL:
        return list(counts), output
    kept = [min(want, count) for count in counts]
    pieces = [piece[len(piece) - keep :] for piece, keep in zip(output.split(list(counts)), kept, strict=True)]
    return kept, torch.cat(pieces) if pieces else output[:0]
