"""Measured costs: the line is found, stalls are ignored, changes are noticed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device.costs import Costs


def measured(batches: list[int], fixed_ms: float, row_ms: float, *, noise: float = 0.0, seed: int = 0) -> Costs:
    costs, rng = Costs(), random.Random(seed)
    for rows in batches:
        costs = costs.with_forward(rows, 0, (fixed_ms + row_ms * rows) * (1 + noise * (rng.random() - 0.5)))
    return costs


@given(st.integers(0, 1 << 30), st.floats(0.1, 100.0), st.floats(0.05, 20.0))
def test_the_cost_of_decodes_is_found_among_noise(seed: int, fixed_ms: float, row_ms: float) -> None:
    rng = random.Random(seed)
    costs = measured([rng.randint(1, 8) for _ in range(100)], fixed_ms, row_ms, noise=0.1, seed=seed)
    for rows in (1, 4, 8):
        assert costs.decode_ms(rows) == pytest.approx(fixed_ms + row_ms * rows, rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300), st.floats(0.0, 1e4)), max_size=60))
def test_estimates_are_never_negative_and_never_fall_with_more_decodes(forwards: list[tuple[int, int, float]]) -> None:
    costs = Costs()
    for rows, tokens, ms in forwards:
        costs = costs.with_forward(rows, tokens, ms)
        guesses = [costs.decode_ms(rows) for rows in range(1, 12)]
        assert guesses == sorted(guesses) and guesses[0] >= 0
        assert costs.token_ms is None or costs.token_ms >= 0


def test_before_batches_differ_half_of_the_time_is_taken_to_be_fixed() -> None:
    costs = measured([1] * 10, 5.0, 5.0)
    assert costs.decode_ms(1) == pytest.approx(10.0) and costs.decode_ms(2) == pytest.approx(15.0)


def test_one_stall_is_not_believed_but_a_slower_machine_is() -> None:
    costs = measured([8] * 50, 2.0, 1.0)
    assert costs.with_forward(8, 0, 1_000.0).decode_ms(8) < 12
    for _ in range(200):
        costs = costs.with_forward(8, 0, 50.0)
    assert costs.decode_ms(8) == pytest.approx(50.0, rel=0.05)


def test_a_prompt_s_token_costs_what_its_forward_took_beyond_the_decodes() -> None:
    costs = measured([8] * 50, 2.0, 1.0)
    for _ in range(20):
        costs = costs.with_forward(8, 100, 30.0)
    assert costs.token_ms == pytest.approx(0.2, rel=0.05) and costs.decode_ms(8) == pytest.approx(10.0, rel=0.05)


def test_what_every_forward_costs_is_not_booked_on_a_prompt_s_tokens() -> None:
    costs = measured([1, 8] * 30, 40.0, 4.0)
    for _ in range(20):
        costs = costs.with_forward(0, 1, 47.0)
    assert costs.token_ms is not None and costs.token_ms < 5.0
