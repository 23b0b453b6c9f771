"""Learning rates of versions, against transformers' schedules and their definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from node.training.optimizer.elementwise import half_cosine, power
from node.training.optimizer.schedule import learning_rate
from protocols.runs import ScheduleSpec

COSINE = ScheduleSpec(shape="cosine", warmup_steps=10, final_share=0.1)
WSD = ScheduleSpec(shape="wsd", warmup_steps=10, final_share=0.1, decay_share=0.2)


def test_cosine_is_transformers_one_step_on() -> None:
    """theirs[n]: after n steps; ours begins at 1, so that version 0 moves and the last version has the final share."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 10, 100, min_lr_rate=0.1).lr_lambdas[0]
    for version in range(100):
        assert learning_rate(COSINE, 2e-3, version, 100) == pytest.approx(2e-3 * theirs(version + 1), rel=1e-12)


def test_wsd_is_stable_and_then_falls_linearly() -> None:
    rates = [learning_rate(WSD, 1.0, version, 100) for version in range(100)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[9:80] == pytest.approx([1.0] * 71)
    assert rates[79:] == pytest.approx([1 - 0.9 * n / 20 for n in range(21)])


@pytest.mark.parametrize("shape", ["cosine", "wsd", "constant"])
@given(data=st.data())
def test_rates_rise_then_fall_between_their_bounds(shape: str, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 200))
    warmup = data.draw(st.integers(0, steps))
    share = data.draw(st.floats(0, 1))
    schedule = ScheduleSpec(shape=shape, warmup_steps=warmup, final_share=share, decay_share=data.draw(st.floats(0, 1)))
    rates = [learning_rate(schedule, 1.0, version, steps) for version in range(steps + 5)]
    top = max(warmup - 1, 0)
    assert all(0 < rate <= 1 + 1e-12 for rate in rates[: steps - 1])
    assert rates[:top] == sorted(rates[:top]) and all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert len(set(rates[steps - 1 :])) == 1  # after the last version nothing changes
    if shape == "constant":
        assert rates[top:] == pytest.approx([1.0] * len(rates[top:]))


def test_numbers_made_of_basic_operations_are_right() -> None:
    """Powers of Fractions are exact; `math.cos` is right within the last bit."""
    for share in (n / 997 for n in range(998)):
        assert half_cosine(share) == pytest.approx((1 + math.cos(math.pi * share)) / 2, abs=1e-15)
    for base, exponent in ((0.9, 1), (0.95, 77), (0.999, 123_456), (0.5, 0)):
        assert power(base, exponent) == pytest.approx(float(Fraction(base) ** exponent if exponent < 100 else base**exponent))
