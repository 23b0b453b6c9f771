"""Masks: they come back from the wire as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError
from protocols.masks import indices_of, mask_of, pack_masks, parse_masks

LIMIT = 64
_sets = st.sets(st.integers(0, LIMIT - 1), max_size=9)


@given(st.lists(_sets, min_size=1, max_size=5))
def test_masks_come_back_as_they_were(sets: list[set[int]]) -> None:
    packed = pack_masks([mask_of(numbers) for numbers in sets])
    found = parse_masks(memoryview(packed), len(sets), LIMIT)
    assert [list(indices_of(mask)) for mask in found] == [sorted(numbers) for numbers in sets]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes([1, 2, 3]), "3 bytes are no 2 masks"),
        (bytes([1]) * 18, "18 bytes are no 2 masks of at most 8 bytes each"),
        (bytes([1, 0, 2, 0]), "as short as they can be"),
    ],
)
def test_masks_of_another_form_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        parse_masks(memoryview(data), 2, LIMIT)
