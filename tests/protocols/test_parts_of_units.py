"""Parts of training units have one text each, which is read back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError
from protocols.ids import MAX_BLOCKS
from protocols.parts_of_units import EMBED, HEAD, Part, parse_part, parts_of
from protocols.units import STACKS, Blocks, Ends, Expert

VECTORS = {"decoder/3:4": Part.block(3), "decoder/ends/embed": EMBED, "decoder/ends/head": HEAD}
blocks = st.builds(
    lambda number, stack: Part(Blocks(number, number + 1, stack)), st.integers(0, MAX_BLOCKS - 1), st.sampled_from(STACKS)
)
parts = blocks | st.builds(
    lambda stack, side: Part(Ends(stack), side), st.sampled_from(STACKS), st.sampled_from(["embed", "head"])
)


@pytest.mark.parametrize("text", VECTORS)
def test_a_part_has_the_text_that_other_peers_know(text: str) -> None:
    assert str(VECTORS[text]) == text and parse_part(text) == VECTORS[text]


@given(parts, parts)
def test_every_part_is_read_back_and_has_a_place(first: Part, second: Part) -> None:
    assert parse_part(str(first)) == first and first in parts_of(first.unit)
    assert (first < second) + (second < first) + (first == second) == 1


@given(parts, st.data())
def test_a_part_with_one_letter_changed_is_another_part_or_none(part: Part, data: st.DataObject) -> None:
    right = str(part)
    at = data.draw(st.integers(0, len(right)))
    letter = data.draw(st.sampled_from("0123456789:/. -+e_\n٣²D"))
    for changed in (right[:at] + letter + right[at:], right[:at] + letter + right[at + 1 :], right[:at] + right[at + 1 :]):
        with contextlib.suppress(BadRequestError):
            assert str(parse_part(changed)) == changed


@pytest.mark.parametrize(
    "wrong",
    ["", "decoder/ends", "decoder/3:6", "decoder/3:4/embed", "decoder/ends/tail", "decoder/4/expert/7", None, 3, "x" * 500],
)
def test_what_is_no_part_is_refused(wrong: object) -> None:
    with pytest.raises(BadRequestError, match=r"part|blocks|unit"):
        parse_part(wrong)


@pytest.mark.parametrize("unit", [Blocks(3, 6), Expert(4, 7)])
def test_a_larger_or_smaller_unit_has_no_parts(unit: Blocks | Expert) -> None:
    with pytest.raises(BadRequestError, match="elementary"):
        parts_of(unit)
