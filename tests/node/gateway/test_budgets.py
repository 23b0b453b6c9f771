"""Budgets of callers: never more than the limit."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.callers.budgets import DAY_S, MINUTE_S, Left, RequestBudget, TokenBudget, after_s, duration, headers

STEPS_S = st.lists(st.floats(0, 40), max_size=60)
"""Times between requests."""

ROUNDING_S = 1e-6


@given(st.integers(1, 8), STEPS_S)
def test_no_minute_has_more_requests_than_the_limit_and_none_is_refused_without_need(limit: int, steps_s: list[float]) -> None:
    budget, now_s, taken_s = RequestBudget(limit), 100.0, list[float]()
    for step_s in steps_s:
        now_s += step_s
        before = [one for one in taken_s if one > now_s - MINUTE_S]
        assert budget.left(now_s).remaining == limit - len(before)
        assert budget.take(now_s) == (len(before) < limit)
        if len(before) < limit:
            taken_s.append(now_s)


@given(st.integers(1, 5), STEPS_S)
def test_after_the_wait_that_was_said_a_request_is_taken(limit: int, steps_s: list[float]) -> None:
    now_s = [*accumulate(steps_s, initial=100.0)][-1]
    left = asked(limit, steps_s).left(now_s)
    assert (left.wait_s == 0) == (left.remaining > 0) and 0 <= left.wait_s <= left.reset_s + 1e-6 <= MINUTE_S + 1e-3
    assert asked(limit, steps_s).take(now_s + after_s(left.wait_s) + ROUNDING_S)
    later_s = now_s + after_s(left.reset_s) + ROUNDING_S
    assert asked(limit, steps_s).left(later_s) == Left(limit=limit, remaining=limit, reset_s=0.0, wait_s=0.0)


def asked(limit: int, steps_s: list[float]) -> RequestBudget:
    """A budget of which as much was taken as could be, from second 100 on."""
    budget = RequestBudget(limit)
    for now_s in accumulate(steps_s, initial=100.0):
        budget.take(now_s)
    return budget


@given(st.integers(1, 50), st.lists(st.tuples(st.floats(0, DAY_S), st.integers(0, 60), st.booleans()), max_size=40))
def test_no_day_has_more_tokens_than_the_limit(limit: int, steps: list[tuple[float, int, bool]]) -> None:
    """Prompts leave something for their answer; an answer takes tokens one by one until it is told to end."""
    budget, unix_s, used = TokenBudget(limit), 1e9, dict[int, int]()
    for step_s, num_tokens, is_prompt in steps:
        unix_s += step_s
        day = int(unix_s // DAY_S)
        before = used.setdefault(day, 0)
        assert budget.left(unix_s).remaining == limit - before
        if is_prompt:
            is_taken = budget.take(num_tokens, unix_s)
            assert is_taken == (before + num_tokens < limit)
            used[day] += num_tokens * is_taken
            continue
        for _ in range(num_tokens):
            if not budget.left(unix_s).remaining:
                break
            used[day] += 1
            assert budget.add(1, unix_s) == (used[day] < limit)
        assert used[day] <= limit


def test_a_day_ends_at_midnight_of_utc_and_a_clock_that_goes_back_begins_none() -> None:
    noon_s = 20_000 * DAY_S + DAY_S / 2
    budget = TokenBudget(10)
    assert budget.left(noon_s) == Left(limit=10, remaining=10, reset_s=0.0, wait_s=0.0)
    assert budget.take(8, noon_s) and not budget.add(2, noon_s)
    assert budget.left(noon_s) == Left(limit=10, remaining=0, reset_s=DAY_S / 2, wait_s=DAY_S / 2)
    assert budget.left(noon_s - 2 * DAY_S).remaining == 0
    assert budget.left(noon_s + DAY_S / 2 - 1).remaining == 0
    assert budget.left(noon_s + DAY_S / 2).remaining == 10


def test_answers_side_by_side_exceed_a_budget_by_what_was_under_way_only() -> None:
    budget = TokenBudget(10)
    assert budget.take(9, 0.0)
    assert [budget.add(1, 0.0) for _ in range(3)] == [False] * 3, "each of three answers is told to end"
    assert budget.left(0.0).remaining == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s"), (3661, "1h1m1s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 10 * DAY_S))
def test_a_time_that_is_written_is_never_too_short(seconds: float) -> None:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    said = sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|h|m|s)", duration(seconds)))
    assert seconds - 1e-9 <= said <= seconds + 1.0
    assert after_s(seconds) >= max(1.0, seconds)


def test_headers_are_those_of_the_budgets_that_there_are() -> None:
    left = Left(limit=60, remaining=59, reset_s=1.0, wait_s=0.0)
    assert headers(None, None) == {}
    assert headers(left, None) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    assert set(headers(left, left)) == {
        f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "tokens")
    }
