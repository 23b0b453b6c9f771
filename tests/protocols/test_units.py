"""Units and weights have one text each, which is read back."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError
from protocols.ids import MAX_BLOCKS, Span
from protocols.units import (
    MAX_EXPERTS,
    MAX_EXTENT,
    MAX_MATRIX_NAME,
    MAX_UNIT_TEXT,
    Blocks,
    Ends,
    Expert,
    Partition,
    Unit,
    parse_unit,
)
from protocols.weights_id import MAX_VERSION, MAX_WEIGHTS_TEXT, Weights
from tests.protocols.samples import MODEL
from tests.protocols.samples import all_units as units
from tests.protocols.samples import all_weights as weights

VECTORS: dict[str, Unit] = {
    "decoder/3:6": Blocks(3, 6),
    "decoder/ends": Ends(),
    "decoder/4/expert/7": Expert(4, 7),
    "decoder/4/self_attn.q_proj/rows/0:128": Partition(4, "self_attn.q_proj", "rows", 0, 128),
    "decoder/0/mlp.experts.3.w1/columns/64:96": Partition(0, "mlp.experts.3.w1", "columns", 64, 96),
    "encoder/0:12": Blocks(0, 12, "encoder"),
    "encoder/ends": Ends("encoder"),
}
CHAIN, ADAPTER = bytes(range(32)), "ad" * 32
WEIGHTS = {
    f"tiny@{'ab' * 32}": Weights(MODEL),
    f"tiny@{'ab' * 32}/7/{CHAIN.hex()}": Weights(MODEL, 7, CHAIN),
    f"tiny@{'ab' * 32}/adapter/{ADAPTER}": Weights(MODEL, adapter=ADAPTER),
    f"tiny@{'ab' * 32}/7/{CHAIN.hex()}/adapter/{ADAPTER}": Weights(MODEL, 7, CHAIN, ADAPTER),
}


@pytest.mark.parametrize("written", VECTORS)
def test_a_unit_has_the_text_that_other_peers_know(written: str) -> None:
    assert str(VECTORS[written]) == written and parse_unit(written) == VECTORS[written]


@given(units)
def test_every_unit_is_read_back(unit: Unit) -> None:
    assert parse_unit(str(unit)) == unit and len(str(unit)) <= MAX_UNIT_TEXT


@given(st.text(max_size=40) | st.sampled_from(list(VECTORS)).flatmap(lambda known: st.permutations(known).map("".join)))
def test_another_text_is_refused_or_was_canonical(written: str) -> None:
    try:
        assert str(parse_unit(written)) == written
    except BadRequestError as error:
        assert len(str(error)) < 400


@given(units, st.data())
def test_a_unit_with_one_letter_changed_is_another_unit_or_none(unit: Unit, data: st.DataObject) -> None:
    right = str(unit)
    at = data.draw(st.integers(0, len(right)))
    letter = data.draw(st.sampled_from("0123456789:/. -+e_\n٣²D"))
    for changed in (right[:at] + letter + right[at:], right[:at] + letter + right[at + 1 :], right[:at] + right[at + 1 :]):
        with contextlib.suppress(BadRequestError):
            assert str(parse_unit(changed)) == changed


@pytest.mark.parametrize(
    "written",
    [
        *("", "decoder", "decoder/", "ends", "decoder/ends/", "/decoder/ends", "Decoder/ends", "middle/ends", "decoder/ends\n"),
        *("3:6", "decoder/3-6", "decoder/03:6", "decoder/+3:6", "decoder/6:6", "decoder/6:3", "decoder/0:10001", "decoder/0:٣"),
        *("decoder/4/expert/07", "decoder/4/expert/-1", "decoder/4/expert/8192", "decoder/10000/expert/0", "decoder/4/expert"),
        *("decoder/4/q/rows/0:0", "decoder/4/q/rows/5:4", "decoder/4/q/diagonal/0:4", "decoder/4//rows/0:4"),
        *("decoder/4/.q/rows/0:4", "decoder/4/q./rows/0:4", "decoder/4/q..k/rows/0:4", "decoder/4/a b/rows/0:4"),
        *("decoder/4/q/rows/0:16777217", f"decoder/4/{'q' * (MAX_MATRIX_NAME + 1)}/rows/0:4", "decoder/" + "9" * 100_000),
        *(None, 7, b"decoder/ends", ["decoder/ends"]),
    ],
)
def test_what_is_no_unit_is_refused_in_few_words(written: object) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_unit(written)
    assert len(str(refused.value)) < 400


def test_the_longest_unit_fits_the_bound_and_a_longer_one_does_not() -> None:
    longest = Partition(MAX_BLOCKS - 1, "m" * MAX_MATRIX_NAME, "columns", MAX_EXTENT - 1, MAX_EXTENT)
    assert MAX_UNIT_TEXT - 4 <= len(str(longest)) <= MAX_UNIT_TEXT and parse_unit(str(longest)) == longest
    for wrong in (
        lambda: Blocks(0, 1, "middle"),
        lambda: Expert(0, MAX_EXPERTS),
        lambda: Partition(0, "q", "rows", 0, MAX_EXTENT + 1),
    ):
        with pytest.raises(BadRequestError):
            wrong()


def test_units_are_ordered_whatever_their_kind() -> None:
    order: list[Unit] = [
        *(Blocks(0, 2), Blocks(0, 10), Blocks(9, 10), Ends(), Expert(2, 3), Expert(10, 0)),
        *(Partition(1, "a", "rows", 0, 4), Partition(1, "a", "rows", 4, 8), Blocks(0, 1, "encoder"), Ends("encoder")),
    ]
    shuffled = random.Random(5).sample(order, len(order))
    assert sorted(shuffled) == order and len({*order, *shuffled}) == len(order)
    assert Ends() <= Ends() and Ends() > Blocks(9, 10)
    assert Blocks.of(Span(3, 6)) == Blocks(3, 6) and Blocks(3, 6).span == Span(3, 6)


# --- weights


@pytest.mark.parametrize("written", WEIGHTS)
def test_weights_have_the_text_that_other_peers_know(written: str) -> None:
    assert str(WEIGHTS[written]) == written and Weights.parse(written) == WEIGHTS[written]


def test_static_weights_are_written_as_their_model() -> None:
    assert str(Weights(MODEL)) == str(MODEL) and Weights(MODEL).is_static
    assert not Weights(MODEL, 7, CHAIN).is_static and not Weights(MODEL, adapter=ADAPTER).is_static


@given(weights)
def test_all_weights_are_read_back(named: Weights) -> None:
    assert Weights.parse(str(named)) == named and len(str(named)) <= MAX_WEIGHTS_TEXT


@given(weights, st.data())
def test_weights_with_one_letter_changed_are_others_or_none(named: Weights, data: st.DataObject) -> None:
    right = str(named)
    at, letter = data.draw(st.integers(0, len(right))), data.draw(st.sampled_from("0af9/@ A\n٣"))
    for changed in (right[:at] + letter + right[at:], right[:at] + letter + right[at + 1 :], right[:at] + right[at + 1 :]):
        with contextlib.suppress(BadRequestError):
            assert str(Weights.parse(changed)) == changed


@pytest.mark.parametrize(
    "rest",
    [
        *("/", "/0", f"/0/{'00' * 32}", "/7", f"/07/{'00' * 32}", f"/7/{'00' * 31}", f"/7/{'AB' * 32}", f"/7/{'00' * 32}/"),
        *(
            "/adapter",
            "/adapter/",
            f"/adapter/{'ad' * 31}",
            f"/adapter/{ADAPTER}/7/{'00' * 32}",
            f"/{MAX_VERSION + 1}/{'00' * 32}",
        ),
    ],
)
def test_what_names_no_weights_is_refused(rest: str) -> None:
    for written in (f"{MODEL}{rest}", rest, "x" * 100_000):
        with pytest.raises(BadRequestError) as refused:
            Weights.parse(written)
        assert len(str(refused.value)) < 400
    for wrong in (None, 7, str(MODEL).encode()):
        with pytest.raises(BadRequestError):
            Weights.parse(wrong)


def test_weights_out_of_bounds_cannot_be_made() -> None:
    for version, chain, adapter in (
        (-1, b"", None),
        (0, CHAIN, None),
        (7, b"", None),
        (MAX_VERSION + 1, CHAIN, None),
        (0, b"", "x"),
    ):
        with pytest.raises(BadRequestError):
            Weights(MODEL, version, chain, adapter)
