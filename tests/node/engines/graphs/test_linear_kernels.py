"""Linear kernels equal `F.linear`; another is used if clearly faster."""

from __future__ import annotations

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from node.engines.graphs import linear_kernels

SIZES = st.integers(1, 40)


@pytest.mark.parametrize("kernel", linear_kernels.KERNELS[1:])
@hypothesis.given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.integers(0, 1 << 16))
def test_every_kernel_is_linear(
    kernel: linear_kernels.LinearKernel, count: int, wide: int, narrow: int, has_bias: bool, is_strided: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    tokens = torch.randn(1, wide, count).transpose(1, 2) if is_strided else torch.randn(1, count, wide)
    weight, bias = torch.randn(narrow, wide), torch.randn(narrow) if has_bias else None
    made = kernel(tokens, weight, bias)
    assert made.shape == (1, count, narrow)
    torch.testing.assert_close(made, F.linear(tokens, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", linear_kernels.KERNELS[1:])
def test_leading_axes_stay(kernel: linear_kernels.LinearKernel) -> None:
    tokens, weight = torch.randn(2, 3, 4, 5), torch.randn(6, 5)
    torch.testing.assert_close(kernel(tokens, weight), F.linear(tokens, weight))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.0, 0.8, 0.9), linear_kernels.transposed),
        ((1.0, 0.8, 0.5), linear_kernels.onednn),
        ((1.0, 0.95, 2.0), F.linear),
        ((1.0, 2.0, float("inf")), F.linear),
    ],
)
def test_another_kernel_has_to_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], expected: linear_kernels.LinearKernel
) -> None:
    def pretended(kernel: linear_kernels.LinearKernel, tokens: Tensor, weight: Tensor) -> float:
        assert tokens.shape == (1, 8, 5)
        return seconds[linear_kernels.KERNELS.index(kernel)]

    monkeypatch.setattr(linear_kernels, "_seconds", pretended)
    assert linear_kernels.fastest([torch.randn(7, 5)] * 3, 8) is expected


def test_a_kernel_that_this_torch_lacks_is_not_used() -> None:
    def missing(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        raise AttributeError("no such operator")

    assert linear_kernels.fastest([torch.randn(7, 5)] * 3, 8, (F.linear, missing)) is F.linear


def test_a_lone_token_is_multiplied_as_the_model_does_it() -> None:
    assert linear_kernels.fastest([torch.randn(7, 5)], 1) is F.linear


def test_a_measurement_leaves_torch_s_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    linear_kernels.fastest([torch.zeros(7, 5)] * 3, 8)
    assert torch.equal(torch.rand(3), expected)


def test_few_matrices_are_tried() -> None:
    small, large = [torch.empty(64, 64)] * 10, [torch.empty(linear_kernels._ENOUGH_BYTES // 4)] * 10
    assert (len(linear_kernels._some(small)), len(linear_kernels._some(large))) == (10, 2)
