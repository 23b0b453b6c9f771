"""Who goes next: the budget holds, the oldest always goes, nothing waits forever, and a session's jobs keep their order."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.serving import scheduler as module
from node.serving.scheduler import Job, Scheduler, choose
from protocols.errors import OverloadedError

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=12)


@given(sizes, st.data(), st.integers(1, 60))
def test_a_batch_keeps_the_budget_and_has_the_oldest_of_the_highest_priority(
    waiting: list[int], data: st.DataObject, budget: int
) -> None:
    priorities = data.draw(st.lists(st.integers(-2, 2), min_size=len(waiting), max_size=len(waiting)))
    chosen = choose(waiting, priorities, budget)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(len(waiting)))
    assert sum(waiting[index] for index in chosen) <= budget or len([i for i in chosen if waiting[i]]) == 1
    assert priorities.index(max(priorities)) in chosen


@given(sizes, st.integers(1, 60))
def test_nothing_more_would_fit(waiting: list[int], budget: int) -> None:
    chosen = choose(waiting, [0] * len(waiting), budget)
    left = budget - sum(waiting[index] for index in chosen)
    assert all(waiting[index] > left for index in range(len(waiting)) if index not in chosen)


@given(sizes, st.integers(1, 60), st.lists(st.integers(0, 50), max_size=40))
def test_nothing_waits_forever_however_many_come_after_it(waiting: list[int], budget: int, later: list[int]) -> None:
    """At equal priority the oldest goes in every round: whoever has n before it waits n rounds at most."""
    queue = list(enumerate(waiting))
    arriving = iter(enumerate(later, start=len(waiting)))
    rounds = 0
    while any(number < len(waiting) for number, _ in queue):
        chosen = set(choose([size for _, size in queue], [0] * len(queue), budget))
        queue = [job for index, job in enumerate(queue) if index not in chosen]
        queue += [job for _, job in zip(range(2), arriving, strict=False)]
        rounds += 1
    assert rounds <= len(waiting)


def test_decodes_go_before_other_prompts() -> None:
    assert choose([1, 90, 1, 1], [0] * 4, 92) == [0, 2, 3]


def job(session: object, tokens: int = 1, *, clears: bool = False) -> Job:
    hidden = None if clears else torch.zeros(tokens, 1)
    return Job(session=session, counts=(tokens,), hidden=hidden, done=lambda outcome: None)  # type: ignore[arg-type]


def test_a_batch_never_holds_two_jobs_of_one_session() -> None:
    """Else rows could be given back under a step of a caller that was cancelled."""
    scheduler, session = Scheduler(100), SimpleNamespace()
    step, clearing, other = job(session, 5), job(session, 0, clears=True), job(SimpleNamespace())
    for each in (step, clearing, other):
        scheduler.submit(each)
    assert scheduler.take() == [step, other]
    assert scheduler.take() == [clearing]


def test_a_clearing_never_overtakes_a_step_too_large_for_the_batch() -> None:
    scheduler, session = Scheduler(10), SimpleNamespace()
    first, large, clearing = job(SimpleNamespace(), 9), job(session, 9), job(session, 0, clears=True)
    for each in (first, large, clearing):
        scheduler.submit(each)
    assert [scheduler.take() for _ in range(3)] == [[first], [large], [clearing]]


def test_a_full_queue_refuses_steps_but_takes_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    scheduler = Scheduler(10)
    for _ in range(2):
        scheduler.submit(job(SimpleNamespace()))
    with pytest.raises(OverloadedError, match="2 steps wait here, the limit: try a replica"):
        scheduler.submit(job(SimpleNamespace()))
    scheduler.submit(job(SimpleNamespace(), 0, clears=True))
    assert len(scheduler) == 3


def test_what_waits_at_the_close_is_still_run() -> None:
    scheduler, waiting = Scheduler(10), job(SimpleNamespace())
    scheduler.submit(waiting)
    scheduler.close()
    with pytest.raises(OverloadedError, match="leaving"):
        scheduler.submit(job(SimpleNamespace()))
    assert scheduler.take() == [waiting] and scheduler.take() is None


def test_close_wakes_whoever_waits_for_work() -> None:
    scheduler, taken = Scheduler(10), []
    thread = threading.Thread(target=lambda: taken.append(scheduler.take()))
    thread.start()
    scheduler.close()
    thread.join(5)
    assert taken == [None]


def test_jobs_of_many_threads_are_each_taken_once_and_in_their_session_s_order() -> None:
    scheduler, taken = Scheduler(7), []
    sessions = [[job(session, 1 + number % 3) for number in range(200)] for session in [SimpleNamespace() for _ in range(4)]]

    def submit(jobs: list[Job]) -> None:
        for each in jobs:
            scheduler.submit(each)

    def run() -> None:
        while (batch := scheduler.take()) is not None:
            taken.extend(batch)

    threads = [threading.Thread(target=submit, args=(jobs,)) for jobs in sessions]
    runner = threading.Thread(target=run)
    for thread in (runner, *threads):
        thread.start()
    for thread in threads:
        thread.join(10)
    scheduler.close()
    runner.join(10)
    assert not runner.is_alive() and len(taken) == 800
    order = {id(each): number for number, each in enumerate(taken)}
    for jobs in sessions:
        assert [order[id(each)] for each in jobs] == sorted(order[id(each)] for each in jobs)
