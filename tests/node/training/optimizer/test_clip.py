"""Clipping by unit, against torch's clip_grad_norm_."""

from __future__ import annotations

import math

import pytest
import torch

from node.training.optimizer.clip import clip_factor, mean_scale
from protocols.errors import BadRequestError
from tests.node.training.optimizer.gradients import gradients


@pytest.mark.parametrize(("limit", "num_units", "is_clipped"), [(1.0, 1, True), (1.0, 9, True), (1e4, 9, False)])
def test_a_unit_is_clipped_as_torch_clips_its_parameters(limit: float, num_units: int, is_clipped: bool) -> None:
    mean = gradients(0)
    sum_of_squares = sum(float(tensor.double().square().sum()) for tensor in mean.values())
    parameters = [torch.nn.Parameter(tensor) for tensor in mean.values()]
    for parameter, tensor in zip(parameters, mean.values(), strict=True):
        parameter.grad = tensor.clone()
    torch.nn.utils.clip_grad_norm_(parameters, limit / math.sqrt(num_units))
    factor = clip_factor(sum_of_squares, limit, num_units)
    assert (factor < 1) is is_clipped
    for parameter, tensor in zip(parameters, mean.values(), strict=True):
        torch.testing.assert_close(tensor * factor, parameter.grad, rtol=1e-5, atol=0)


def test_units_at_their_limits_are_together_at_the_limit_of_the_model() -> None:
    factors = [clip_factor(square, 1.0, 3) for square in (4.0, 25.0, 900.0)]
    total = sum(square * factor**2 for square, factor in zip((4.0, 25.0, 900.0), factors, strict=True))
    assert total == pytest.approx(1.0, rel=1e-5)


def test_a_summed_gradient_is_scaled_to_its_clipped_mean() -> None:
    assert mean_scale(100.0, 20, 0.0, 3) == 1 / 20  # 0: no clipping
    assert mean_scale(100.0, 20, 1e3, 3) == 1 / 20
    mean_square = 100.0 / 20**2
    assert mean_scale(100.0, 20, 0.1, 3) == pytest.approx(clip_factor(mean_square, 0.1, 3) / 20)
    assert clip_factor(mean_square, 0.1, 3) < 1
    assert clip_factor(0.0, 1.0, 3) == 1
    assert mean_scale(0.0, 0, 1.0, 3) == 0, "a batch without a target has no gradient"


@pytest.mark.parametrize("poison", [math.nan, math.inf, -1.0])
def test_a_poisoned_sum_is_refused(poison: float) -> None:
    with pytest.raises(BadRequestError, match="sum of squares"):
        clip_factor(poison, 1.0, 1)
