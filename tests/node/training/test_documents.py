"""Packed documents are computed as each alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from node.training import documents
from node.training.documents import Documents
from protocols.errors import BadRequestError
from protocols.ids import Span
from tests.families import make_checkpoint
from tests.node.training.staged import IDS, one_stage

LENGTHS = ((3, 7, 2), (4, 8))
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in LENGTHS])
LABELS = torch.where(POSITIONS.roll(-1, 1) > 0, IDS.roll(-1, 1), -100)
LABELS[:, -1] = -100


@pytest.mark.parametrize(
    ("family", "ways"),
    [
        ("llama", ("together", "together")),
        ("gemma3_text", ("together", "together")),
        ("mamba", ("padded", "padded")),
        ("bloom", ("padded", "padded")),
        ("opt", ("together", "padded")),
    ],
)
def test_packed_documents_give_the_loss_and_gradients_of_each_alone(tmp_path: Path, family: str, ways: tuple[str, str]) -> None:
    stage = one_stage(make_checkpoint(family, tmp_path))
    flight = stage.forward(Span(0, stage.span.stop), IDS, POSITIONS, LABELS)
    got = stage.backward(flight)
    assert (stage._ends._way, stage._way) == ways, "not the way that this test is about"  # type: ignore[union-attr]
    expected: dict[str, Tensor] = {}
    loss = 0.0
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            place = (slice(row, row + 1), slice(at, at + length))
            alone = stage.forward(Span(0, stage.span.stop), IDS[place], None, LABELS[place])
            loss += alone.loss_sum
            for part, names in stage.backward(alone).by_part.items():
                for name, one in names.items():
                    expected[f"{part}/{name}"] = expected.get(f"{part}/{name}", 0) + one
            at += length
    assert flight.loss_sum == pytest.approx(loss, rel=1e-5)
    found = {f"{part}/{name}": one for part, names in got.by_part.items() for name, one in names.items()}
    assert found.keys() == expected.keys()
    scale = float(torch.stack([one.norm() for one in expected.values()]).norm())
    for key, one in found.items():
        assert float((one - expected[key]).norm()) <= 1e-4 * max(float(expected[key].norm()), 1e-4 * scale), key


def test_attention_across_documents_would_show(tmp_path: Path) -> None:
    """The control: the same tokens as one document give another loss."""
    stage = one_stage(make_checkpoint("llama", tmp_path))
    packed, plain = (stage.forward(Span(0, 5), IDS, positions, LABELS).loss_sum for positions in (POSITIONS, None))
    assert abs(packed - plain) > 1e-2


def test_positions_of_one_document_a_sequence_are_as_none(tmp_path: Path) -> None:
    stage = one_stage(make_checkpoint("bloom", tmp_path))  # counts by itself, and takes no positions
    plain = torch.arange(12).expand(2, 12)
    assert torch.equal(stage.forward(Span(0, 2), IDS, plain).output, stage.forward(Span(0, 2), IDS).output)  # type: ignore[arg-type]


lengths_of_sequences = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3)


@given(lengths_of_sequences, st.sampled_from(["padded", "equal"]))
def test_every_token_is_computed_once_in_its_place_and_at_most_half_is_filling(
    lengths: list[list[int]], way: documents.Way
) -> None:
    longest = max(map(sum, lengths))
    rows = [[*one, *([longest - sum(one)] if sum(one) < longest else [])] for one in lengths]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    values = torch.arange(positions.numel(), dtype=torch.float64).view(*positions.shape, 1)
    num_run = 0

    def running_sum(given: Tensor, at: Tensor | None) -> Tensor:
        nonlocal num_run
        assert at is None
        num_run += given.shape[0] * given.shape[1]
        return given.cumsum(1)  # causal: depends on all that came before in its document

    got = documents.run(running_sum, values, positions, way)
    expected = torch.stack(
        [torch.cat([part.cumsum(0) for part in row.split(lengths)]) for row, lengths in zip(values, rows, strict=True)]
    )
    assert torch.equal(got, expected)
    assert num_run <= (2 if way == "padded" else 1) * positions.numel()


@pytest.mark.parametrize("wrong", [[[1, 2, 3]], [[0, 2, 3]], [[0, 1, 1]], [[0, 1, 2], [0, 1, 5]]])
def test_positions_that_neither_count_nor_restart_are_refused(wrong: list[list[int]]) -> None:
    with pytest.raises(BadRequestError, match="positions start at 0"):
        Documents.of(torch.tensor(wrong))


def test_a_way_is_not_chosen_out_of_memory() -> None:
    """The next micro-batch chooses again: else a slower way would stay for as long as the process lives."""

    def function(values: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return values

    with pytest.raises(torch.OutOfMemoryError):
        documents.choose_way(function, torch.zeros(*documents.test_tokens(), 4))
