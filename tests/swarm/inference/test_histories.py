"""Histories are cut from shared pieces, one frame at a time.

Their memory does not grow with the copies of a sequence.
"""

from __future__ import annotations

import tracemalloc

import torch

from protocols import compression
from protocols.defaults import MAX_ROWS
from protocols.ids import SessionId
from protocols.inference import Repeat, Step
from swarm.inference.histories import num_rounds, rounds
from swarm.inference.pieces import Piece, PieceRow
from swarm.inference.retained import Retained

SESSION = SessionId(bytes(16))


def piece(values: list[float], kind: str = "hidden") -> Piece:
    return Piece(compression.pack(torch.tensor(values)[:, None]), None, kind)


def values_of(row: PieceRow) -> list[float]:
    return [float(value) for part in row.pieces for value in compression.unpack(part.values)]


def test_copies_of_a_row_share_their_past_and_nothing_else() -> None:
    row = PieceRow()
    for number in range(200):
        row.append(piece([float(number)]))
    twin, other = row.fork(), row.fork()
    twin.append(piece([-1.0]))
    while other.length > 150:
        other.pop()
    other.append(piece([-2.0]))
    row.append(piece([-3.0]))
    past = [float(number) for number in range(200)]
    assert values_of(twin) == [*past, -1.0] and values_of(row) == [*past, -3.0] and values_of(other) == [*past[:150], -2.0]
    assert [own.length for own in (row, twin, other)] == [201, 201, 151] and other.num_bytes == 4 * 151


def test_a_row_that_is_copied_at_each_step_does_not_become_a_chain_of_single_pieces() -> None:
    row = PieceRow()
    for number in range(1_000):
        row.append(piece([float(number)]))
        row = row.fork()
    chunk, links = row._shared, 0
    while chunk is not None:
        chunk, links = chunk.before, links + 1
    assert links <= 1_000 // 64 + 1 and values_of(row) == [float(number) for number in range(1_000)]


def test_a_history_of_many_copies_is_never_put_together_as_a_whole() -> None:
    """A sequence of 1 MB, a thousand times: its first frame took 4 s and 1 GB."""
    retained = Retained()
    tokens = torch.rand(100, 2_500)
    retained.add(Step(session=SESSION, epoch=0, step=0, counts=(100,), payload=compression.pack(tokens)))
    for number in range(1, 11):
        ops = (Repeat(MAX_ROWS),) if number == 1 else ()
        empty = compression.pack(torch.empty(0, 2_500))
        retained.add(Step(session=SESSION, epoch=0, step=number, counts=(0,) * MAX_ROWS, payload=empty, ops=ops))
    frames = retained.histories(SESSION, 1)
    tracemalloc.start()
    try:
        first = next(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first.counts == (1,) * MAX_ROWS and first.parts == 100
    assert bytes(first.payload.data) == bytes(compression.pack(tokens[:1]).data) * MAX_ROWS
    assert peak < 2 * first.payload.num_bytes + (8 << 20)


def test_the_number_of_rounds_is_known_before_they_are_made() -> None:
    cases = [[], [()], [(("hidden", 7),)], [(("hidden", 7),), (("hidden", 9),), ()], [(("embeds", 3), ("ids", 4)), (("ids", 9),)]]
    for runs in cases:
        for share in (1, 2, 3, 100):
            made = list(rounds(runs, share))
            assert len(made) == num_rounds(runs, share)
            assert [sum(taken) for taken in zip(*made, strict=True)] == [sum(tokens for _, tokens in own) for own in runs]
