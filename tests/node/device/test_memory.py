"""Memory by shares: if short, the largest holder is refused first.

While there is plenty, any client may take any amount; a new session is refused before an open one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device.memory import WANTING_S, Holdings, Memory, reason_against


def reason(needed: float, free: float, held: float, clients: int, *, is_new: bool = False, is_wanted: bool = False) -> str | None:
    return reason_against(
        needed=needed, free=free, limit=100, held_by_client=held, num_clients=clients, is_new=is_new, is_wanted=is_wanted
    )


def test_while_there_is_plenty_any_client_may_take_anything() -> None:
    assert reason(50, free=70, held=30, clients=5) is None
    assert reason(100, free=100, held=0, clients=1) is None


def test_when_it_is_short_the_client_above_its_share_is_refused_and_the_others_are_not() -> None:
    assert "more than your share of it (one of 2 clients)" in (reason(5, free=15, held=70, clients=2) or "")
    assert reason(5, free=15, held=15, clients=2) is None


def test_a_refused_client_makes_memory_short() -> None:
    assert reason(2, free=40, held=60, clients=2) is None
    assert reason(2, free=40, held=60, clients=2, is_wanted=True) is not None


def test_a_newcomer_must_leave_a_little_for_those_under_way() -> None:
    assert reason(10, free=12, held=0, clients=1, is_new=True) is not None
    assert reason(10, free=12, held=0, clients=1) is None


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 9), st.booleans(), st.booleans())
def test_nothing_is_promised_that_is_not_there_and_a_client_within_its_share_gets_what_there_is(
    needed: float, free: float, clients: int, is_new: bool, is_wanted: bool
) -> None:
    if needed > free:
        assert reason(needed, free, 0, clients, is_new=is_new, is_wanted=is_wanted) is not None
    elif not is_new and needed <= 100 / clients:
        assert reason(needed, free, 0, clients, is_wanted=is_wanted) is None


@dataclass
class Engines:
    """The engines of a host, by the bytes that they hold."""

    used_bytes: int = 0


def test_holdings_of_all_hosts_count_who_shares_and_forget_who_went() -> None:
    memory, first, second = Memory(limit_bytes=1_000), Holdings(), Holdings()
    memory.enter(Engines(used_bytes=400), first, 1_000)
    memory.enter(Engines(used_bytes=100), second, 1_000)
    first.add("a", 30)
    first.add("b", 10)
    second.add("a", 7)  # tokens of another model: another size
    assert first.part_of("a") == pytest.approx(0.75) and memory.num_clients("c", 0.0) == 3
    assert memory.held_by("a") == pytest.approx(0.75 * 400 + 100) and memory.free_bytes == 500
    memory.refused("d", 0.0)
    assert memory.num_clients("a", 1.0) == 3 and memory.is_wanted("a", 1.0) and not memory.is_wanted("d", 1.0)
    assert memory.num_clients("a", WANTING_S + 1) == 2 and not memory.is_wanted("a", WANTING_S + 1)
    first.add("a", -30)
    second.add("a", -7)
    assert first.tokens == {"b": 10} and memory.held_by("a") == 0.0


def test_the_budget_is_what_the_newest_host_measured_beside_what_the_others_held() -> None:
    memory, old, new = Memory(), Engines(), Engines()
    memory.enter(old, Holdings(), 1_000)
    old.used_bytes = 300
    memory.enter(new, Holdings(), 450)  # free beside the old one's 300, after the new one's weights
    assert memory.limit_bytes == 750 and memory.free_bytes == 450
    memory.leave(new)
    assert memory.limit_bytes == 1_000
