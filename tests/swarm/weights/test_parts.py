"""Bitmaps, layouts, buckets, and the choice of models and sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError, CheckpointError, ModelNotFoundError, ModelNotSupportedError
from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.units import Blocks, Ends, Expert, Partition
from protocols.weights import Manifest, TensorEntry, canonical_config
from swarm.checkpoints.layout import Layout
from swarm.weights.bitmap import Bitmap
from swarm.weights.bucket import TokenBucket
from swarm.weights.cache import ModelCache
from swarm.weights.names import split_name
from swarm.weights.ranking import ranked
from tests.hosting import hosted
from tests.swarm.weights.parts import CONFIG, make_model


@given(st.integers(0, 200), st.sets(st.integers(0, 199)))
def test_a_bitmap_is_a_set_of_small_numbers(num: int, wanted: set[int]) -> None:
    members = {index for index in wanted if index < num}
    made = Bitmap.of(num, members)
    again = Bitmap(num, made.to_bytes())
    assert {index for index in range(-3, num + 3) if index in again} == members
    assert again.count == len(members) and again.is_full == (len(members) == num)


@given(st.integers(0, 100), st.binary(max_size=20))
def test_an_untrusted_bitmap_has_one_form(num: int, data: bytes) -> None:
    try:
        assert Bitmap(num, data).to_bytes() == data
    except BadRequestError:
        assert len(data) != -(-num // 8) or data[-1] >> num % 8


NAMES = st.sampled_from(
    ["model.layers.0.a", "model.layers.0.b", "model.layers.11.a", "h.3.x", "3.y", "wte", "ln_f.weight", "a b.c"]
)
ENTRIES = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(["F32", "BF16", "U8", "F64"]), st.lists(st.integers(0, 5), max_size=3))
)


@given(ENTRIES)
def test_every_shard_is_a_file_that_safetensors_reads(entries: dict[str, tuple[str, list[int]]]) -> None:
    manifest = Manifest(
        tuple(TensorEntry(name, dtype, tuple(shape), bytes(32)) for name, (dtype, shape) in sorted(entries.items())), CONFIG
    )
    layout = Layout(manifest)
    assert sorted(tensor for shard in layout.shards for tensor in shard.tensors) == list(range(len(entries)))
    for shard in layout.shards:
        read = dict(safetensors.deserialize(shard.header + bytes(shard.num_bytes - len(shard.header))))  # type: ignore[no-untyped-call]
        assert set(read) == {manifest.entries[tensor].name for tensor in shard.tensors}
        assert all(
            list(manifest.entries[tensor].shape) == read[manifest.entries[tensor].name]["shape"] for tensor in shard.tensors
        )


def test_a_block_is_one_shard_and_each_tensor_of_the_ends_another(tmp_path: Path) -> None:
    layout = Layout(make_model(tmp_path).manifest)
    assert [len(shard.tensors) for shard in layout.blocks] == [2, 2, 2, 2] and len(layout.shards) == 4 + 3
    with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
        layout.shards_with(["nothing"])


@pytest.mark.parametrize("name", ["__metadata__"])
def test_a_name_that_would_make_another_file_of_it_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="__metadata__"):
        Layout(Manifest((TensorEntry(name, "F32", (1,), bytes(32)),), CONFIG))


def test_absurd_sizes_and_unknown_formats_are_refused_before_anything_is_made() -> None:
    with pytest.raises(CheckpointError, match="can be fetched"):
        Layout(Manifest((TensorEntry("a", "F32", (10**14,), bytes(32)),), CONFIG))
    with pytest.raises(ModelNotSupportedError, match="F4"):
        Layout(Manifest((TensorEntry("a", "F4", (1,), bytes(32)),), CONFIG))


def test_a_config_that_asks_for_code_never_reaches_the_disk(tmp_path: Path) -> None:
    manifest = Manifest((), canonical_config({"model_type": "llama", "auto_map": {"AutoConfig": "evil.py"}}))
    with pytest.raises(ModelNotSupportedError, match="own code"):
        ModelCache(tmp_path, ModelId("evil", manifest.digest), manifest)
    assert not (tmp_path / manifest.digest).exists()


def test_a_bucket_keeps_the_rate_and_the_order() -> None:
    bucket = TokenBucket(100.0, 50.0)
    assert [bucket.delay_s(50, 0.0), bucket.delay_s(100, 0.0), bucket.delay_s(100, 0.0)] == [0.0, 1.0, 2.0]
    assert bucket.delay_s(100, 10.0) == 0.5, "a pause allows one burst, no more"


# --- names and sources


def record(
    number: int, name: str, digest: str, start: int, stop: int, *, ends: bool = False, state: str = "serving", mbit: int = 0
) -> PeerRecord:
    served = hosted(ModelId(name, digest * 64), Span(start, stop), 8, ends=ends)
    return PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, hosted=served, state=state, upload_bytes_s=mbit * 125_000)


def test_a_digest_is_written_with_six_letters_at_least() -> None:
    assert split_name("m@abcdef") == ("m", "abcdef") and split_name("m") == ("m", "")
    with pytest.raises(ModelNotFoundError, match="at least 6 letters"):
        split_name("m@abc")


def test_a_few_sources_that_together_have_all_of_it_are_asked_first() -> None:
    records = [
        record(1, "m", "a", 0, 2),
        record(2, "m", "a", 0, 3),
        record(3, "m", "a", 3, 6),
        record(4, "m", "b", 0, 8),
        record(5, "m", "a", 6, 8, ends=True),
    ]
    order = ranked(records, "a" * 64, [Blocks(1, 5), Ends()], records[0].peer, lambda: 0.0)
    assert [records.index(one) for one in order[:2]] in ([1, 2], [2, 1]) and records.index(order[2]) == 4 and len(order) == 3


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 2), st.booleans()), max_size=12), st.integers(0, 5), st.booleans())
def test_the_ranking_names_each_peer_once_and_covers_all_it_can(
    spans: list[tuple[int, int, bool]], start: int, ends: bool
) -> None:
    records = [record(number + 1, "m", "a", at, at + length, ends=has) for number, (at, length, has) in enumerate(spans)]
    order = ranked(
        records, "a" * 64, [Blocks(start, start + 3), *([Ends()] if ends else [])], from_seed(bytes(32)).peer_id, lambda: 0.5
    )
    assert sorted(one.peer for one in order) == sorted(one.peer for one in records)


def test_who_announces_the_unit_is_asked_first_whatever_its_kind() -> None:
    """An expert and a partition are had by peers with their block, and by those that host just them; ends by those that host
    them, at any block."""
    records = [record(1, "m", "a", 0, 4), record(2, "m", "a", 4, 8, ends=True), record(3, "m", "a", 0, 4)]
    part = replace(records[0].hosted[0], unit=Expert(6, 1))
    records.append(replace(record(4, "m", "a", 0, 4), hosted=(part,)))
    for unit, first in [
        (Ends(), {1}), (Expert(5, 0), {1}), (Expert(6, 1), {1, 3}), (Partition(5, "q", "rows", 0, 1), {1}), (Blocks(3, 4), {0, 2}),
    ]:  # fmt: skip
        order = ranked(records, "a" * 64, [unit], from_seed(bytes(32)).peer_id, lambda: 0.5)
        assert {records.index(one) for one in order[: len(first)]} == first, unit


def test_a_known_low_cap_comes_after_none() -> None:
    records = [record(1, "m", "a", 0, 8, mbit=1), record(2, "m", "a", 0, 8, mbit=100), record(3, "m", "a", 0, 8)]
    order = ranked(records, "a" * 64, [Blocks(0, 8)], from_seed(bytes(32)).peer_id, lambda: 0.5)
    assert order[-1] is records[0], "100 Mbit/s and no cap are alike: nothing is gained by a claim of speed"
