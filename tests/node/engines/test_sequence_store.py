"""Rows of keys and values: growing in place, copying where memory is shared, and giving back what is not needed."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from node.engines import sequence_store
from node.engines.sequence_store import CPU_EXTENT_TOKENS, BlockShape, PackedSequence, SequenceStore
from protocols.errors import CacheFullError

SHAPE = BlockShape(num_heads=2, key_size=4, value_size=4, dtype=torch.float32, device=torch.device("cpu"))


def _grown(store: SequenceStore, row: PackedSequence, count: int) -> None:
    store.reserve([(row, count)])
    row.length += count


def _keys(row: PackedSequence) -> torch.Tensor:
    assert row.buffer is not None
    return row.buffer.keys[0][0]


def test_a_row_grows_in_place_and_only_what_it_may_hold_is_booked() -> None:
    """Copying a row of 1,000 tokens kept the whole batch waiting for hundreds of milliseconds."""
    store, row = SequenceStore([SHAPE], 1 << 30), PackedSequence()
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
    store, row = SequenceStore([SHAPE], 1 << 30), PackedSequence()
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
    store, row = SequenceStore([SHAPE], 256 * SHAPE.token_bytes), PackedSequence()
    _grown(store, row, 200)
    booked = store.used_bytes
    with pytest.raises(CacheFullError, match="no memory for 100 more tokens"):
        store.reserve([(row, 100)])
    assert store.used_bytes == booked
    assert row.length == 200
    _grown(store, row, 56)  # what is left


def test_what_is_cropped_goes_back() -> None:
    store, row = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, row, 3_000)
    before, place = store.used_bytes, _keys(row).data_ptr()
    store.crop(row, 2_900)
    assert store.used_bytes < before / 4
    assert _keys(row).data_ptr() != place, "touched memory is only given back with its tensors"


def _huge_and_resident_kib(place: int) -> tuple[str, int]:
    """Of the mapping that holds an address: may it have huge pages ("nh" among its flags: no), and what it takes."""
    inside, resident = False, -1
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(part, 16) for part in first.split("-"))
            inside = start <= place < stop
        elif inside and first == "Rss:":
            resident = int(line.split()[1])
        elif inside and first == "VmFlags:":
            return line, resident
    raise AssertionError("no such mapping")


def test_what_is_not_written_to_takes_no_memory_whatever_the_size_of_pages() -> None:
    """With huge pages, 32 tokens would take megabytes a head."""
    shape = BlockShape(num_heads=8, key_size=128, value_size=128, dtype=torch.float32, device=torch.device("cpu"))
    store, row = SequenceStore([shape], 1 << 30), PackedSequence()
    _grown(store, row, 32)
    _keys(row)[:, :32] = 1.0
    flags, resident_kib = _huge_and_resident_kib(_keys(row).data_ptr())
    assert " nh" in flags
    assert 0 < resident_kib <= 1_024, "16 MB are mapped, 128 KB written"


def test_where_address_space_is_short_a_row_has_what_it_needs_and_is_copied_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    store, row = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, row, 10)
    assert row.buffer is not None and row.buffer.extent == row.buffer.capacity
    _keys(row)[:, :10] = 7.0
    _grown(store, row, 1_000)
    assert bool((_keys(row)[:, :10] == 7.0).all())
    monkeypatch.setattr(sequence_store, "_at_hand", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(CacheFullError, match="the device has no memory"):
        store.reserve([(row, 10_000)])
    assert row.length == 1_010
