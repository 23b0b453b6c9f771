"""Buffers of sequences: grown in place, copied if shared, and freed."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from node.engines import sequence_store
from node.engines.sequence_store import CPU_EXTENT_TOKENS, BlockShape, PackedSequence, SequenceStore
from protocols.errors import CacheFullError

SHAPE = BlockShape(num_heads=2, key_size=4, value_size=4, dtype=torch.float32, device=torch.device("cpu"))


def _grown(store: SequenceStore, sequence: PackedSequence, count: int) -> None:
    store.reserve([(sequence, count)])
    sequence.length += count


def _keys(sequence: PackedSequence) -> torch.Tensor:
    assert sequence.buffer is not None
    return sequence.buffer.keys[0][0]


def test_a_sequence_grows_in_place_and_only_what_it_may_hold_is_booked() -> None:
    """Copying a sequence of 1,000 tokens kept the whole batch waiting for hundreds of milliseconds."""
    store, sequence = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, sequence, 10)
    place, booked = _keys(sequence).data_ptr(), store.used_bytes
    _keys(sequence)[:, :10] = 7.0
    while sequence.length < CPU_EXTENT_TOKENS // 2:
        _grown(store, sequence, 100)
    assert _keys(sequence).data_ptr() == place
    assert sequence.buffer is not None and sequence.length <= sequence.buffer.capacity < 2 * sequence.length
    assert booked < store.used_bytes == sequence.buffer.capacity * SHAPE.token_bytes
    _grown(store, sequence, CPU_EXTENT_TOKENS)  # longer than its tensors: copied once
    assert _keys(sequence).data_ptr() != place
    assert bool((_keys(sequence)[:, :10] == 7.0).all())
    store.close(sequence)
    assert store.used_bytes == 0


def test_a_shared_sequence_is_copied_before_it_grows() -> None:
    store, sequence = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, sequence, 60)
    _keys(sequence)[:, :60] = 1.0
    twin = store.fork(sequence)
    _grown(store, twin, 200)
    _keys(twin)[:, :60] = 2.0
    assert _keys(twin).data_ptr() != _keys(sequence).data_ptr()
    assert bool((_keys(sequence)[:, :60] == 1.0).all())
    store.close(sequence)
    store.close(twin)
    assert store.used_bytes == 0


def test_a_sequence_that_may_not_grow_stays_as_it_was() -> None:
    store, sequence = SequenceStore([SHAPE], 256 * SHAPE.token_bytes), PackedSequence()
    _grown(store, sequence, 200)
    booked = store.used_bytes
    with pytest.raises(CacheFullError, match="no memory for 100 more tokens"):
        store.reserve([(sequence, 100)])
    assert store.used_bytes == booked
    assert sequence.length == 200
    _grown(store, sequence, 56)  # what is left


def test_what_is_cropped_goes_back() -> None:
    store, sequence = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, sequence, 3_000)
    before, place = store.used_bytes, _keys(sequence).data_ptr()
    store.crop(sequence, 2_900)
    assert store.used_bytes < before / 4
    assert _keys(sequence).data_ptr() != place, "touched memory is only given back with its tensors"


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
    store, sequence = SequenceStore([shape], 1 << 30), PackedSequence()
    _grown(store, sequence, 32)
    _keys(sequence)[:, :32] = 1.0
    flags, resident_kib = _huge_and_resident_kib(_keys(sequence).data_ptr())
    assert " nh" in flags
    assert 0 < resident_kib <= 1_024, "16 MB are mapped, 128 KB written"


def test_if_address_space_is_short_a_sequence_has_what_it_needs_and_is_copied_as_it_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    store, sequence = SequenceStore([SHAPE], 1 << 30), PackedSequence()
    _grown(store, sequence, 10)
    assert sequence.buffer is not None and sequence.buffer.extent == sequence.buffer.capacity
    _keys(sequence)[:, :10] = 7.0
    _grown(store, sequence, 1_000)
    assert bool((_keys(sequence)[:, :10] == 7.0).all())
    monkeypatch.setattr(sequence_store, "_allocated", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(CacheFullError, match="the device has no memory"):
        store.reserve([(sequence, 10_000)])
    assert sequence.length == 1_010
