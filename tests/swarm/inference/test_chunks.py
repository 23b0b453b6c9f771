"""Chunks: whatever the counts, the wish and the limit, the answer is what one big step would give."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocols.inference import WANT_ALL
from swarm.inference import chunks

some_counts = st.lists(st.integers(0, 9), max_size=5)


def tokens_of(counts: list[int]) -> Tensor:
    """Token j of row i is (i, j)."""
    values = [[float(row), float(token)] for row, count in enumerate(counts) for token in range(count)]
    return torch.tensor(values).reshape(-1, 2)


@given(some_counts, st.integers(-1, 12), st.integers(1, 30))
def test_chunks_answer_what_one_step_would(counts: list[int], want: int, limit: int) -> None:
    values = tokens_of(counts)
    pieces = chunks.plan(counts, want, limit)
    outputs = []
    for piece in pieces:
        cut = chunks.cut(piece, counts, values)
        assert len(cut) == sum(piece.counts) <= max(limit, len(counts))
        outputs.append(chunks.select(piece.want, piece.counts, cut))
    direct = chunks.select(want, counts, values)[1]
    assert torch.equal(chunks.join(pieces, outputs), direct)


@given(some_counts, st.integers(-1, 12), st.integers(1, 30))
def test_chunks_cover_every_token_once_and_in_order(counts: list[int], want: int, limit: int) -> None:
    pieces = chunks.plan(counts, want, limit)
    assert len(pieces) >= 1
    at = [0] * len(counts)
    for piece in pieces:
        assert list(piece.starts) == at
        at = [start + count for start, count in zip(piece.starts, piece.counts, strict=True)]
    assert at == counts


def test_chunks_that_nobody_needs_ask_for_nothing_back() -> None:
    assert [piece.want for piece in chunks.plan([10], 1, 4)] == [0, 0, 1]
    assert [piece.want for piece in chunks.plan([10], WANT_ALL, 4)] == [WANT_ALL] * 3


@given(some_counts, st.integers(0, 12))
def test_select_takes_the_last_of_each_row(counts: list[int], want: int) -> None:
    kept, values = chunks.select(want, counts, tokens_of(counts))
    expected = [[row, token] for row, count in enumerate(counts) for token in range(max(0, count - want), count)]
    assert kept == [min(want, count) for count in counts]
    assert values.tolist() == expected
