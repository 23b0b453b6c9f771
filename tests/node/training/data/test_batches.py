"""Micro-batches: a pure function of seed, version and index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from node.training.data.batches import Batches
from node.training.data.micro_batch import NO_TARGET, MicroBatch
from protocols.errors import ConfigError
from protocols.runs import BatchRule, DataRule, RunSpec
from tests.node.training.data.made import data, numbered, source

ONE = data(source(numbered(*[11] * 16)))


def batches(of: Any = ONE, **changes: Any) -> Batches:
    """44 sequences of 4 tokens, 6 in a batch."""
    wanted = dict(seed=0, sequence_tokens=4, packing=True, micro_batch_sequences=2, num_micro_batches=3)
    return Batches(of, **{**wanted, **changes})


def same(one: MicroBatch, other: MicroBatch) -> bool:
    arrays = [(one.ids, other.ids), (one.labels, other.labels), (one.positions, other.positions)]
    return all(np.array_equal(a, b) for a, b in arrays if a is not None or b is not None)  # type: ignore[arg-type]


def test_two_trainers_draw_the_same_in_any_order() -> None:
    ahead = {(version, index): batches().micro_batch(version, index) for version in range(9) for index in range(3)}
    again = batches()
    for version, index in sorted(ahead, reverse=True):
        assert same(again.micro_batch(version, index), ahead[version, index])


def test_one_pass_holds_each_sequence_once_and_the_next_another_order() -> None:
    run = batches(num_micro_batches=2)  # 4 sequences in a batch: 11 batches are a pass
    batch = [run.micro_batch(version, index) for version in range(22) for index in range(2)]
    passes = [[int(first) for one in batch[start : start + 22] for first in one.ids[:, 0]] for start in (0, 22)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(0, 176, 4))
    assert passes[0] != passes[1] and passes[0] != sorted(passes[0])


def test_another_seed_is_another_order() -> None:
    assert not same(batches().micro_batch(0, 0), batches(seed=1).micro_batch(0, 0))


def test_arrays_are_int32_and_positions_are_left_out_if_no_document_begins_within() -> None:
    one = batches().micro_batch(0, 0)
    assert {one.ids.dtype, one.labels.dtype} == {np.dtype(np.int32)} and one.ids.shape == one.labels.shape == (2, 4)
    found = [batches().micro_batch(version, index).positions for version in range(5) for index in range(3)]
    assert any(positions is None for positions in found)
    packed = [positions for positions in found if positions is not None]
    assert packed and all(positions.dtype == np.int32 and (positions != np.arange(4)).any() for positions in packed)
    assert batches(packing=False).micro_batch(0, 0).positions is None


def test_targets_and_their_bytes_are_counted() -> None:
    for one in (batches().micro_batch(0, 1), batches(packing=False).micro_batch(0, 2)):
        targets = [int(label) for label in one.labels.flat if label != NO_TARGET]
        assert (one.num_targets, one.num_bytes) == (len(targets), sum(target % 5 for target in targets))


def test_weights_set_the_shares_and_a_small_source_is_repeated() -> None:
    low, high = numbered(40), [[token + 1_000 for token in range(400)]]
    run = batches(data(source(low, weight=0.75), source(high, weight=0.25)))
    drawn = [int(ids[0]) for version in range(20) for index in range(3) for ids in run.micro_batch(version, index).ids]
    small = [first for first in drawn if first < 1_000]
    assert len(small) == 90 and len(drawn) == 120
    assert all(sorted(small[start : start + 10]) == list(range(0, 40, 4)) for start in range(0, 90, 10))


def test_without_weights_a_pass_over_several_sources_holds_each_sequence_once() -> None:
    run = batches(data(source(numbered(12)), source([[token + 1_000 for token in range(36)]])))
    assert run.num_sequences == 12
    drawn = [int(ids[0]) for version in range(2) for index in range(3) for ids in run.micro_batch(version, index).ids]
    assert sorted(drawn) == [0, 4, 8, *range(1_000, 1_036, 4)]


def test_validation_is_in_order_and_each_sequence_comes_once() -> None:
    held_out = data(source(numbered(10)), source([[token + 1_000 for token in range(9)]]))
    found = list(batches(validation=held_out).validation())
    assert [one.ids[:, 0].tolist() for one in found] == [[0, 4], [8, 1_000], [1_004, 1_008]]
    assert sum(one.num_targets for one in found) == 9 + 8
    assert list(batches().validation()) == []


def test_a_run_draws_by_its_spec_and_refuses_other_data() -> None:
    rule = DataRule(digest=ONE.digest, sequence_tokens=4, packing=True)
    spec = RunSpec(name="tiny", seed=5, data=rule, batch=BatchRule(steps=40, batch_tokens=24, micro_batch_sequences=2))
    assert same(Batches.of(spec, ONE).micro_batch(3, 2), batches(seed=5).micro_batch(3, 2))
    with pytest.raises(
        ConfigError, match=rf"has the digest .{{16}}…, expected {ONE.digest[:16]}… of run tiny: use the same text"
    ):
        Batches.of(spec, data(source(numbered(200))))


def test_less_text_than_one_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 44 sequences of 4 tokens, expected at least the 46 of one batch: add text"):
        batches(num_micro_batches=23)


def test_weights_for_some_sources_only_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 of 2 data sources have no weight"):
        batches(data(source(numbered(40), weight=1), source(numbered(40))))


def test_documents_of_one_token_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="data source 0 has no sequence with a target"):
        batches(data(source(numbered(1, 1, 1))), packing=False)


def test_the_digest_follows_text_order_weights_and_padding() -> None:
    one, other = source(numbered(4)), source(numbered(5))
    digests = [data(one).digest, data(one, other).digest, data(other, one).digest, data(source(numbered(4), weight=1)).digest]
    assert len(set(digests)) == 4 and data(source(numbered(4))).digest == digests[0]
