"""Sequences: each token once, no target across a border, positions by document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.training.data.micro_batch import NO_TARGET
from node.training.data.packing import sequences_of
from tests.node.training.data.made import PAD, numbered, source

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=10)
LENGTH = st.integers(1, 9)


@given(sizes=SIZES, length=LENGTH)
def test_packed_each_token_is_an_input_once_and_in_order(sizes: list[int], length: int) -> None:
    sequences = sequences_of(source(numbered(*sizes)), length, True, PAD)
    ids = np.concatenate([sequences.read(number).ids for number in range(len(sequences))])
    assert ids.tolist() == [*range(sum(sizes)), *[PAD] * (-sum(sizes) % length)]


@pytest.mark.parametrize("packing", [True, False])
@given(sizes=SIZES, length=LENGTH)
def test_each_token_but_a_documents_first_is_a_target_once(packing: bool, sizes: list[int], length: int) -> None:
    documents = numbered(*sizes)
    sequences = sequences_of(source(documents), length, packing, PAD)
    read = [sequences.read(number) for number in range(len(sequences))]
    targets = [int(label) for one in read for label in one.labels if label != NO_TARGET]
    assert targets == [token for document in documents for token in document[1:]]


@pytest.mark.parametrize("packing", [True, False])
@given(sizes=SIZES, length=LENGTH)
def test_a_target_is_the_next_token_of_the_same_document(packing: bool, sizes: list[int], length: int) -> None:
    """Tokens are numbered through, so next means plus one; a document's first token is nowhere a target (above)."""
    sequences = sequences_of(source(numbered(*sizes)), length, packing, PAD)
    for number in range(len(sequences)):
        one = sequences.read(number)
        has_target = one.labels != NO_TARGET
        assert (one.labels[has_target] == one.ids[has_target] + 1).all()


@given(sizes=SIZES, length=LENGTH)
def test_packed_positions_begin_at_0_in_each_document_and_each_sequence(sizes: list[int], length: int) -> None:
    firsts = {document[0] for document in numbered(*sizes)}
    sequences = sequences_of(source(numbered(*sizes)), length, True, PAD)
    for number in range(len(sequences)):
        expected: list[int] = []
        for place, token in enumerate(sequences.read(number).ids.tolist()):
            expected.append(0 if place == 0 or token in firsts else expected[-1] + 1)
        assert sequences.read(number).positions.tolist() == expected


@given(sizes=SIZES, length=LENGTH)
def test_windows_hold_one_document_each_and_padding_at_the_end(sizes: list[int], length: int) -> None:
    documents = numbered(*sizes)
    sequences, number = sequences_of(source(documents), length, False, PAD), 0
    for document in documents:
        for start in range(0, len(document) - 1, length):
            ids = document[start : start + length]
            one = sequences.read(number)
            assert one.ids.tolist() == [*ids, *[PAD] * (length - len(ids))]
            assert one.positions.tolist() == list(range(length))
            number += 1
    assert number == len(sequences)


@pytest.mark.parametrize("packing", [True, False])
@given(sizes=SIZES, length=LENGTH, data=st.data())
def test_only_marked_tokens_are_targets(packing: bool, sizes: list[int], length: int, data: st.DataObject) -> None:
    documents = numbered(*sizes)
    marks = data.draw(st.lists(st.integers(0, 1), min_size=sum(sizes), max_size=sum(sizes)))
    sequences = sequences_of(source(documents, marks), length, packing, PAD)
    read = [sequences.read(number) for number in range(len(sequences))]
    targets = [int(label) for one in read for label in one.labels if label != NO_TARGET]
    assert targets == [token for document in documents for token in document[1:] if marks[token]]
