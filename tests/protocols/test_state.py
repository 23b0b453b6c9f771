"""The state of a unit: its form, its digest, and refusals."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError, FrameError
from protocols.ids import ModelId
from protocols.state import (
    MAX_FORM_BYTES,
    MAX_STATE_BYTES,
    MAX_TENSORS,
    PART_BYTES,
    Form,
    StateHeader,
    StatePart,
    StateRequest,
    TensorForm,
    parse_answer,
    state_hash,
)
from protocols.units import Blocks, Ends
from tests.protocols.samples import FORM, forms

RUN = ModelId("prose", "ab" * 32)
TEXT = b"I64 [] parameter/3.count\nF32 [2,3] momentum/3.mlp.weight\nF32 [2,3] parameter/3.mlp.weight\n"


def test_the_form_and_the_digest_never_change() -> None:
    """A digest can be checked with `sha256sum` and this form."""
    assert FORM.canonical() == TEXT
    assert FORM.num_bytes == 8 + 24 + 24
    found = state_hash(Blocks(3, 4), 7, bytes(range(32)), FORM)
    found.update(b"bytes")
    first = f"murmuration state 1\ndecoder/3:4 7 {bytes(range(32)).hex()} {len(TEXT)}\n".encode()
    assert found.digest() == hashlib.sha256(first + TEXT + b"bytes").digest()
    assert found.hexdigest() == "19f6d16ce0f0553f201741b1a42d82c6e1bec7aea73cd920f5ad634c58e04f0c"


@given(forms)
def test_a_form_comes_back_as_it_was(form: Form) -> None:
    assert Form.parse(form.canonical()) == form


@given(st.binary(max_size=80) | st.lists(st.sampled_from(TEXT.splitlines(keepends=True)), max_size=4).map(b"".join))
def test_other_bytes_are_refused_or_are_a_form(data: bytes) -> None:
    try:
        form = Form.parse(data)
    except BadRequestError:
        return
    assert form.canonical() == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (TEXT[:-1], "ends with a line end"),
        (b"F32 [2, 3] parameter/w\n", "a line of a state's form is"),
        (b"F32 [02] parameter/w\n", "a line of a state's form is"),
        (b"F32 [2] parameter/\xff\n", "UTF-8"),
        (b"Q4 [2] parameter/w\n", "dtype 'Q4'"),
        (b"F32 [2] w\n", "kind/name"),
        (b"F32 [2] Parameter/w\n", "kind/name"),
        (b"F32 [2] parameter/a\tb\n", "kind/name"),
        (b"F32 [2] parameter/a\nF32 [2] parameter/a\n", "out of order"),
        (b"F32 [2] parameter/b\nF32 [2] parameter/a\n", "out of order"),
        (b"F32 [9999999999999,9999999999999] parameter/a\n", f"at most {MAX_STATE_BYTES} bytes"),
        (b"\n" * 1_000_000, f"at most {MAX_TENSORS} lines"),
        (b"x" * (MAX_FORM_BYTES + 1), f"{MAX_FORM_BYTES} bytes"),
    ],
)
def test_a_form_out_of_bounds_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        Form.parse(data)


def test_a_state_has_a_bounded_number_of_tensors() -> None:
    with pytest.raises(BadRequestError, match=f"at most {MAX_TENSORS} tensors, got {MAX_TENSORS + 1}"):
        Form.of(TensorForm(f"parameter/{number}", "F32", ()) for number in range(MAX_TENSORS + 1))


@pytest.mark.parametrize("units", [(), (Ends(), Ends()), tuple(Blocks(n, n + 1) for n in range(65))], ids=["none", "twice", "65"])
def test_a_request_names_each_unit_once(units: tuple[Blocks | Ends, ...]) -> None:
    with pytest.raises(BadRequestError, match=f"1 to 64 units, each once, got {len(units)}"):
        StateRequest(run=RUN, units=units)


@pytest.mark.parametrize(("version", "chain"), [(0, bytes(32)), (1, b""), (1, bytes(31))])
def test_a_header_has_the_chain_of_its_version(version: int, chain: bytes) -> None:
    with pytest.raises(BadRequestError, match=f"version {version} has a chain"):
        StateHeader(unit=Ends(), version=version, chain=chain, form=FORM, digest=bytes(32))


@pytest.mark.parametrize("size", [0, PART_BYTES + 1])
def test_a_part_is_neither_empty_nor_too_long(size: int) -> None:
    with pytest.raises(FrameError, match=f"1 to {PART_BYTES} bytes"):
        parse_answer(StatePart(offset=0, data=bytes(size)).encode())
