"""Prefill chunks together give what one big step would give.

This holds for all counts, wishes and limits.
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocols import compression
from protocols.inference import WANT_ALL
from protocols.tensors import WireTensor
from swarm.inference import chunks

some_counts = st.lists(st.integers(0, 9), max_size=5)


def tokens_of(counts: list[int]) -> Tensor:
    """Token j of sequence i is (i, j)."""
    values = [[float(row), float(token)] for row, count in enumerate(counts) for token in range(count)]
    return torch.tensor(values).reshape(-1, 2)


limits = st.tuples(st.integers(1, 30), st.none() | st.integers(1, 8))


def wire_of(counts: list[int]) -> WireTensor:
    return compression.pack(tokens_of(counts))


@given(some_counts, st.integers(-1, 12), limits)
def test_chunks_answer_what_one_step_would(counts: list[int], want: int, limit: tuple[int, int | None]) -> None:
    values = wire_of(counts)
    pieces = chunks.plan(counts, want, *limit)
    outputs = []
    for piece in pieces:
        cut = chunks.cut(piece, counts, values)
        assert cut.shape[0] == sum(piece.counts) <= max(limit[0], len(counts))
        answer = chunks.select(piece.want, piece.counts, cut)
        assert limit[1] is None or answer.shape[0] <= limit[1]
        outputs.append((chunks.kept(piece.want, piece.counts), answer))
    direct = chunks.select(want, counts, values)
    assert torch.equal(compression.unpack(chunks.join(pieces, outputs)), compression.unpack(direct))


@given(some_counts, st.integers(-1, 12), limits)
def test_chunks_cover_every_token_once_and_in_order(counts: list[int], want: int, limit: tuple[int, int | None]) -> None:
    pieces = chunks.plan(counts, want, *limit)
    positions = list(range(sum(counts)))
    assert len(pieces) >= 1
    assert sorted(place for piece in pieces for place in chunks.cut_positions(piece, counts, positions)) == positions
    at = [0] * len(counts)
    for piece in pieces:
        assert list(piece.starts) == at
        at = [start + count for start, count in zip(piece.starts, piece.counts, strict=True)]
    assert at == counts


def test_chunks_without_a_wanted_token_ask_for_no_output() -> None:
    assert [piece.want for piece in chunks.plan([10], 1, 4)] == [0, 0, 1]
    assert [piece.want for piece in chunks.plan([10], WANT_ALL, 4)] == [WANT_ALL] * 3


@given(some_counts, st.integers(0, 12))
def test_select_takes_the_last_of_each_sequence(counts: list[int], want: int) -> None:
    kept, values = chunks.kept(want, counts), compression.unpack(chunks.select(want, counts, wire_of(counts)))
    expected = [[row, token] for row, count in enumerate(counts) for token in range(max(0, count - want), count)]
    assert kept == tuple(min(want, count) for count in counts)
    assert values.tolist() == expected


def test_logits_of_many_sequences_come_in_several_replies() -> None:
    """32 sequences of one token each, of which 16 fit a reply: two steps, each with half of the sequences."""
    first, second = chunks.plan([1] * 32, 1, 128, 16)
    assert (sum(first.counts), sum(second.counts)) == (16, 16) and first.counts[:16] == (1,) * 16 == second.counts[16:]
