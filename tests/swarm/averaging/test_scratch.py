"""Pieces of slices, and the memory of reduced values."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.averaging import Values
from protocols.defaults import MAX_PART_BYTES
from swarm.averaging import codec
from swarm.averaging.scratch import LARGEST_PIECE, PIECE, cut
from tests.swarm.averaging.peers import running


@given(st.integers(0, 200_000_000), st.integers(1, 64))
def test_pieces_cover_every_value_once_and_are_small_enough(num_values: int, num_members: int) -> None:
    slices = cut(num_values, num_members)
    assert len(slices) == num_members
    pieces = [piece for own in slices for piece in own]
    edges = [0, *(piece.stop for piece in pieces)]
    assert edges[-1] == num_values and [(piece.start, piece.stop) for piece in pieces] == list(pairwise(edges))
    most = max(PIECE, LARGEST_PIECE // max(1, num_members - 1))
    assert all(0 < piece.num_values <= most for piece in pieces)
    assert all(piece.num_values % codec.BLOCK == 0 for own in slices for piece in own[:-1])


def test_the_largest_piece_travels_in_one_message() -> None:
    for name in ("float32", "float16", "int8"):
        frame = Values(codec.encode(torch.zeros(LARGEST_PIECE), name)).encode()
        assert len(frame) <= MAX_PART_BYTES


async def test_the_next_version_takes_the_memory_of_the_last() -> None:
    async with running(2) as peers:
        places = []
        for _ in range(3):
            peers.fill()
            group = peers.group()
            await peers.close(group)
            await peers.apply(group)
            reduced = peers[0].replica.reduced
            assert reduced is not None
            places.append(reduced.values.data_ptr())
        assert len(set(places)) == 1
