"""Codecs keep to their errors, and refuse what would poison a sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import TensorFormatError
from protocols.runs import AVERAGING_CODECS as CODECS
from swarm.averaging import codec
from swarm.averaging.codec import BLOCK, decode, encode, num_bytes

values = st.one_of(
    st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-1, 1, width=32), st.floats(-(2.0**-120), 2.0**-120, width=32)
)
tensors = st.lists(values, max_size=40).flatmap(
    lambda some: st.integers(0, 2 * BLOCK).map(lambda more: torch.tensor(some + [0.25] * more, dtype=torch.float32))
)


def there_and_back(given_values: torch.Tensor, name: str) -> torch.Tensor:
    data = bytes(encode(given_values, name))
    assert len(data) == num_bytes(name, given_values.numel())
    again = torch.full_like(given_values, 7.0)
    decode(data, name, again)
    return again


@given(tensors)
def test_float32_keeps_every_bit(given_values: torch.Tensor) -> None:
    assert bytes(there_and_back(given_values, "float32").numpy()) == bytes(given_values.numpy())


@given(tensors)
def test_float16_is_within_its_error_and_ends_at_its_largest_value(given_values: torch.Tensor) -> None:
    again, clamped = there_and_back(given_values, "float16"), given_values.clamp(-65_504, 65_504)
    bound = torch.maximum(clamped.abs() / 2**11, torch.tensor(2.0**-25))
    assert ((again - clamped).abs() <= bound).all()


@given(tensors)
def test_int8_is_within_a_254th_of_the_largest_of_a_block(given_values: torch.Tensor) -> None:
    again = there_and_back(given_values, "int8").double()
    for before, after in zip(given_values.double().split(BLOCK), again.split(BLOCK), strict=True):
        bound = max(float(before.abs().max()) / 254 * (1 + 1e-6), 1.5e-36) if before.numel() else 0.0
        assert before.numel() == 0 or float((before - after).abs().max()) <= bound


def test_one_outlier_costs_its_own_block_only() -> None:
    given_values = torch.randn(3 * BLOCK, generator=torch.Generator().manual_seed(1))
    given_values[5] = 1e6
    again = there_and_back(given_values, "int8")
    assert again[5] == pytest.approx(1e6) and (again - given_values)[BLOCK:].abs().max() < 0.02


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_at_both_ends(name: str, bad: float) -> None:
    given_values = torch.ones(2_000)
    given_values[1_999] = bad
    with pytest.raises(TensorFormatError, match="not averaged"):
        encode(given_values, name)
    data = bytearray(encode(torch.ones(2_000), name))
    if name == "int8":
        data[4:8] = bytes(torch.tensor([bad]).numpy())  # the scale of the second block
    else:
        data[-num_bytes(name, 1) :] = bytes(torch.tensor([bad]).to(getattr(torch, name)).numpy())
    with pytest.raises(TensorFormatError, match="not averaged"):
        decode(bytes(data), name, torch.empty(2_000))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("change", [-1, 1])
def test_other_bytes_than_those_of_all_values_are_refused(name: str, change: int) -> None:
    with pytest.raises(TensorFormatError, match="1500 values"):
        decode(bytes(num_bytes(name, 1_500) + change), name, torch.empty(1_500))


def test_a_value_that_int8_would_overflow_is_refused() -> None:
    with pytest.raises(TensorFormatError, match="too large"):
        encode(torch.tensor([3.3e38]), "int8")
    assert torch.finfo(torch.float32).max > codec.LARGEST
