"""Rows of keys and values: growing in place, copying where memory is shared, and giving back what is not needed."""

from __future__ import annotations

import pytest
import torch

from node.serving.row_store import CPU_EXTENT_TOKENS, BlockShape, PackedRow, RowStore
from protocols.errors import CacheFullError

SHAPE = BlockShape(num_heads=2, key_size=4, value_size=4, dtype=torch.float32, device=torch.device("cpu"))


def _grown(store: RowStore, row: PackedRow, count: int) -> None:
    store.reserve([(row, count)])
    row.length += count


def _keys(row: PackedRow) -> torch.Tensor:
    assert row.buffer is not None
    return row.buffer.keys[0]


def test_a_row_grows_in_place_and_only_what_it_may_hold_is_booked() -> None:
    """Copying a row of 1,000 tokens kept the whole batch waiting for hundreds of milliseconds."""
    store, row = RowStore([SHAPE], 1 << 30), PackedRow()
    _grown(store, row, 10)
    place, booked = _keys(row).data_ptr(), store.used_bytes
    _keys(row)[:, :10] = 7.0
    while row.length < CPU_EXTENT_TOKENS // 2:
        _grown(store, row, 100)
    assert _keys(row).data_ptr() == place
    assert row.buffer is not None and row.length <= row.buffer.capacity < 2 * row.length
    assert booked < store.used_bytes == row.buffer.capacity * SHAPE.token_bytes
    _grown(store, row, CPU_EXTENT_TOKENS)  # longer than its tensors: copied once
    assert _keys(row).data_ptr() != place
    assert bool((_keys(row)[:, :10] == 7.0).all())
    store.close(row)
    assert store.used_bytes == 0


def test_a_shared_row_is_copied_before_it_grows() -> None:
    store, row = RowStore([SHAPE], 1 << 30), PackedRow()
    _grown(store, row, 60)
    _keys(row)[:, :60] = 1.0
    twin = store.fork(row)
    _grown(store, twin, 200)
    _keys(twin)[:, :60] = 2.0
    assert _keys(twin).data_ptr() != _keys(row).data_ptr()
    assert bool((_keys(row)[:, :60] == 1.0).all())
    store.close(row)
    store.close(twin)
    assert store.used_bytes == 0


def test_a_row_that_may_not_grow_stays_as_it_was() -> None:
    store, row = RowStore([SHAPE], 256 * SHAPE.token_bytes), PackedRow()
    _grown(store, row, 200)
    booked = store.used_bytes
    with pytest.raises(CacheFullError, match="no memory for 100 more tokens"):
        store.reserve([(row, 100)])
    assert store.used_bytes == booked
    assert row.length == 200
    _grown(store, row, 56)  # what is left


def test_what_is_cropped_goes_back() -> None:
    store, row = RowStore([SHAPE], 1 << 30), PackedRow()
    _grown(store, row, 3_000)
    before, place = store.used_bytes, _keys(row).data_ptr()
    store.crop(row, 2_900)
    assert store.used_bytes < before / 4
    assert _keys(row).data_ptr() != place, "touched memory is only given back with its tensors"
