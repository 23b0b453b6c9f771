"""Fair order of steps: shares of clients, weights of priorities, bounded delays."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device.fairness import MAX_IDLE, Accounts, Claim, Ledger, weight_of


def served(
    ledger: Ledger, sessions: list[tuple[str, int]], rounds: int, per_round: int, weights: dict[str, float]
) -> Counter[str]:
    """Milliseconds that each client gets, if all sessions always have a step of 1 ms waiting, and `per_round` steps run at a time."""
    times: Counter[str] = Counter()
    for _ in range(rounds):
        claims = [Claim(client=client, session=(client, n), cost_ms=1 / weights[client]) for client, n in sessions]
        chosen = ledger.order(claims)[:per_round]
        ledger.advance([(sessions[index][0], sessions[index]) for index in chosen])
        for index in chosen:
            client, number = sessions[index]
            ledger.charge(client, (client, number), 1 / weights[client])
            times[client] += 1
    return times


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(1, 5))
def test_clients_get_equal_shares_however_many_sessions_they_have(counts: list[int], per_round: int) -> None:
    sessions = [(f"client {client}", number) for client, count in enumerate(counts) for number in range(count)]
    per_round = min(per_round, 2)  # below the number of clients: else a client with one session cannot use its share
    times = served(Ledger(), sessions, 60, per_round, {f"client {c}": 1.0 for c in range(len(counts))})
    fair = 60 * per_round / len(counts)
    if per_round == 1 or len(counts) > 2:
        assert all(abs(time - fair) <= 2 for time in times.values()), times


@given(st.integers(1, 20), st.integers(1, 20))
def test_shares_follow_the_weights(low: int, high: int) -> None:
    weights = {"a": 1.0, "b": 0.5}
    sessions = [("a", n) for n in range(low)] + [("b", n) for n in range(high)]
    times = served(Ledger(), sessions, 300, 1, weights)
    assert times["a"] == pytest.approx(200, abs=3)


@given(st.integers(0, 1 << 30))
def test_no_client_waits_long_while_others_come_and_go(seed: int) -> None:
    """With n clients of equal weight, one that waits is served within n + 1 steps of others, each of at most the longest step."""
    rng, ledger = random.Random(seed), Ledger()
    clients = [f"client {number}" for number in range(6)]
    waited: Counter[str] = Counter()
    for _ in range(300):
        present = [client for client in clients if client in waited or rng.random() < 0.4]
        if not present:
            continue
        first = ledger.order([Claim(client=client, session=client, cost_ms=1.0) for client in present])[0]
        ledger.advance([(present[first], present[first])])
        ledger.charge(present[first], present[first], rng.choice([0.5, 1.0]))
        del waited[present[first]]
        for client in present:
            if client != present[first]:
                waited[client] += 1
        assert max(waited.values(), default=0) <= 3 * len(clients)


def test_sessions_of_one_client_are_served_in_rotation() -> None:
    ledger = Ledger()
    sessions = [("a", number) for number in range(3)]
    turns = []
    for _ in range(6):
        index = ledger.order([Claim(client="a", session=session, cost_ms=1.0) for session in sessions])[0]
        turns.append(index)
        ledger.advance([("a", sessions[index])])
        ledger.charge("a", sessions[index], 1.0)
    assert turns == [0, 1, 2, 0, 1, 2]


def test_an_idle_client_accumulates_no_time() -> None:
    ledger = Ledger()
    both = [Claim(client=client, session=client, cost_ms=1.0) for client in ("busy", "idle")]
    for _ in range(100):
        ledger.advance([("busy", "busy")])
        ledger.charge("busy", "busy", 1.0)
    turns = Counter[int]()
    for _ in range(10):
        index = ledger.order(both)[0]
        turns[index] += 1
        ledger.advance([(both[index].client, both[index].session)])
        ledger.charge(both[index].client, both[index].session, 1.0)
    assert turns[0] >= 4


def test_the_lowest_priority_still_has_a_weight_and_a_forged_one_gains_nothing() -> None:
    assert 0 < weight_of(-100) < weight_of(-10) == 0.5 and weight_of(7) == weight_of(0) == 1.0


def test_accounts_of_clients_that_left_are_dropped() -> None:
    accounts = Accounts()
    for number in range(10 * MAX_IDLE):
        accounts.advance({number})
        accounts.charge(number, 1.0)
    assert len(accounts.spent) <= MAX_IDLE + 1
