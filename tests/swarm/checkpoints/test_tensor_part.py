"""Cuts of tensors as byte ranges and pieces equal torch's indexing.

Also refused: experts in forms that cannot be told apart.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import BadRequestError, ModelNotSupportedError
from protocols.units import Expert
from protocols.weights import PIECE_BYTES, Manifest, TensorEntry, canonical_config
from swarm.checkpoints.layout import Layout
from swarm.checkpoints.numbered import block_of, expert_counts
from swarm.checkpoints.tensor_part import MAX_RANGES, Cut, TensorPart, byte_ranges
from swarm.checkpoints.unit_parts import StoredModel, parts_of

DIMS = st.integers(1, 5) | st.sampled_from([256, 1_000, 4_096, 600_000])
SHAPES = st.lists(DIMS, min_size=1, max_size=4).filter(lambda shape: math.prod(shape) < 5 * PIECE_BYTES)


def entry(name: str, *shape: int, dtype: str = "U8") -> TensorEntry:
    return TensorEntry(name, dtype, shape, bytes(32))


@settings(max_examples=60)
@given(SHAPES, st.data())
def test_the_ranges_of_a_cut_are_the_bytes_that_torch_would_take(shape: list[int], data: st.DataObject) -> None:
    few = [axis for axis in range(len(shape)) if math.prod(shape[:axis]) <= 50_000]  # ranges; more than MAX_RANGES are refused
    axis = data.draw(st.sampled_from(few))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, shape[axis]))
    taken = torch.arange(math.prod(shape)).reshape(shape).narrow(axis, start, stop - start).flatten()
    ranges = byte_ranges(entry("t", *shape), Cut(axis, start, stop))
    assert ranges.num_bytes == len(taken)
    pairs = list(ranges)
    if len(pairs) < 5_000:
        assert torch.equal(torch.cat([torch.arange(*pair) for pair in pairs]), taken)
    assert [piece for run in ranges.pieces() for piece in run] == sorted(
        {int(piece) for piece in torch.unique(taken // PIECE_BYTES)}
    )


def test_a_cut_takes_at_most_one_piece_more_at_each_edge_of_a_range() -> None:
    """A matrix with 4 matrix rows of 10 MiB in a format of 4 bytes: columns leave most of its pieces out."""
    matrix = entry("t", 4, 10 * PIECE_BYTES // 4, dtype="F32")
    ranges = byte_ranges(matrix, Cut(1, 300_000, 700_000))
    assert (ranges.count, ranges.length) == (4, 1_600_000)
    assert ranges.pieces() == (range(1, 3), range(11, 13), range(21, 23), range(31, 33))
    [wanted] = Layout(Manifest((matrix,), canonical_config({}))).covering([TensorPart("t", Cut(1, 300_000, 700_000))])
    assert ranges.num_bytes < wanted.num_bytes == 8 * PIECE_BYTES <= ranges.num_bytes + 2 * PIECE_BYTES * ranges.count


def test_parts_that_overlap_are_fetched_once_and_the_last_piece_is_as_long_as_it_is() -> None:
    layout = Layout(Manifest((entry("a.0.t", 5 * PIECE_BYTES // 2), entry("empty", 0)), canonical_config({})))
    parts = [TensorPart("a.0.t", Cut(0, start, start + 10)) for start in (2 * PIECE_BYTES, 5, 2 * PIECE_BYTES - 5, 0)]
    [wanted] = layout.covering(parts)
    assert wanted.pieces == {0: (range(3),)} and wanted.num_bytes == 5 * PIECE_BYTES // 2 and not wanted.is_whole
    [nothing] = layout.covering([TensorPart("empty")])
    assert nothing.num_bytes == 0


@pytest.mark.parametrize(
    ("shape", "cut", "why"),
    [
        ((MAX_RANGES + 1, 4), Cut(1, 0, 2), "at most 1048576"),
        ((10**9, 2, 2), Cut(2, 0, 1), "at most 1048576"),
        ((4, 4), Cut(2, 0, 1), "no 0:1 along axis 2"),
        ((4, 4), Cut(-1, 0, 1), "along axis -1"),
        ((4, 4), Cut(0, 2, 5), "no 2:5"),
        ((4, 4), Cut(0, 2, 2), "no 2:2"),
        ((), Cut(0, 0, 1), "along axis 0"),
    ],
)
def test_a_cut_beyond_the_tensor_or_in_absurdly_many_ranges_is_refused(shape: tuple[int, ...], cut: Cut, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        byte_ranges(entry("t", *shape), cut)


def test_the_blocks_are_those_of_the_language_model_however_heavy_its_tower_is() -> None:
    names = [(f"model.layers.{block}.w", 10) for block in range(3)] + [(f"vision.layers.{block}.w", 1_000) for block in range(5)]
    layout = Layout(Manifest(tuple(sorted(entry(name, size) for name, size in names)), canonical_config({})))
    assert [shard.key for shard in layout.blocks] == ["model.layers.0.", "model.layers.1.", "model.layers.2."]
    assert len(layout.shards) == 8
    assert block_of("h.12.w", "h.") == 12 and block_of("h.x.w", "h.") is None and block_of("h.².w", "h.") is None


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        ({"experts.w1": (8 * 20, 16)}, {"num_experts": 8}),  # fused along axis 0, as in dbrx
        ({"experts.w1": (8, 16, 16), "experts.w2": (4, 16)}, {"num_experts": 8}),
        ({"experts.w1": (8, 16, 16)}, {"hidden_size": 8}),
        ({"experts.scale": ()}, {"num_experts": 8}),
        ({"experts.0.w1": (16, 16), "experts.1.w1": (16, 16)}, {"num_experts": 8}),
        ({"experts.0.w1": (16, 16), "experts.2.w1": (16, 16)}, {"num_experts": 3}),
        ({"mlp.w1": (16, 16)}, {"num_experts": 8}),
    ],
)
def test_experts_in_a_form_that_is_not_understood_are_refused(
    shapes: dict[str, tuple[int, ...]], config: dict[str, object]
) -> None:
    tensors = {f"h.0.{name}": entry(f"h.0.{name}", *shape) for name, shape in shapes.items()}
    model = StoredModel(tensors=tensors, prefix="h.", expert_counts=expert_counts({"text_config": config}))
    with pytest.raises(ModelNotSupportedError, match="take the whole block"):
        parts_of(Expert(0, 0), model)
