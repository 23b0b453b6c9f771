"""Enough micro-batches are under way for the slowest stage, no more."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import pytest

from protocols.ids import PeerId
from protocols.receipts import Receipt
from swarm.training.window import MOST, Window

BATCH = 4_096


def receipt(compute_s: float, queue_s: float = 0.0) -> Receipt:
    return Receipt(peer=PeerId("stage"), queue_ms=1e3 * queue_s, forward_ms=1e3 * compute_s / 3, backward_ms=2e3 * compute_s / 3)


def simulated(window: Window, compute_s: Sequence[float], leg_s: float, num_passes: int, fixed: int | None = None) -> float:
    """Seconds for each of the last half of so many micro-batches, of one pipeline: down all stages, and up again.

    leg_s: from one peer to the next. fixed: so many are under way; None = as many as the window says.
    """
    num = len(compute_s)
    visits = [(stage, compute_s[stage] / 3) for stage in range(num)] + [
        (stage, compute_s[stage] * 2 / 3) for stage in reversed(range(num))
    ]
    free_s, order = [0.0] * num, itertools.count()
    events: list[tuple[float, int, int, float, float]] = []  # at, tie, visit, begun, queued
    finished: list[float] = []
    num_begun = 0
    now_s = 0.0
    while len(finished) < num_passes:
        while num_begun - len(finished) < (fixed or window.size(num, 1.0, BATCH)):
            heapq.heappush(events, (now_s + leg_s, next(order), 0, now_s, 0.0))
            num_begun += 1
        now_s, _, visit, begun_s, queued_s = heapq.heappop(events)
        if visit == len(visits):
            finished.append(now_s)
            own = [receipt(one) for one in compute_s[1:]]
            window.add(now_s - begun_s, [receipt(compute_s[0], queued_s), *own])
            continue
        stage, takes_s = visits[visit]
        starts_s = max(now_s, free_s[stage])
        free_s[stage] = starts_s + takes_s
        is_turn = visit == num - 1  # the last hop goes on with its own backward
        next_s = free_s[stage] + (0.0 if is_turn else leg_s)
        heapq.heappush(events, (next_s, next(order), visit + 1, begun_s, queued_s + starts_s - now_s))
    half = num_passes // 2
    return (finished[-1] - finished[half - 1]) / (num_passes - half)


@pytest.mark.parametrize("compute_s", [(0.05, 0.05, 0.05), (0.02, 0.02, 0.02, 0.02), (0.03, 0.06, 0.02)])
def test_the_slowest_stage_of_a_wide_area_computes_all_the_time(compute_s: Sequence[float]) -> None:
    """100 ms between any two peers: two for each stage would not be enough."""
    window = Window()
    each_s = simulated(window, compute_s, leg_s=0.05, num_passes=400)
    assert each_s <= 1.05 * max(compute_s)
    assert simulated(Window(), compute_s, leg_s=0.05, num_passes=400, fixed=2 * len(compute_s)) > 1.2 * each_s


def test_without_delays_two_for_each_stage_are_under_way() -> None:
    window = Window()
    assert window.size(3, 1.0, BATCH) == 6 and window.size(0, 0.0, BATCH) == 2
    assert simulated(window, (0.1, 0.1, 0.1), leg_s=0.0, num_passes=50) == pytest.approx(0.1)
    assert window.size(3, 1.0, BATCH) == 6
    assert window.size(6, 2.0, BATCH) == 12, "two replicas of each"


def test_a_full_link_does_not_get_more_and_more_to_carry() -> None:
    """The longer a micro-batch waits for a link, the longer is its way; that must not be a reason to send more."""
    window = Window()
    for under_way in range(1, 60):
        window.add(0.4 + 0.2 * under_way, [receipt(0.1), receipt(0.1)])
    assert window.size(2, 1.0, BATCH) == 2 + 6


@pytest.mark.parametrize(
    "hostile",
    [
        Receipt(peer=PeerId("stage"), forward_ms=1e9),
        Receipt(peer=PeerId("stage"), queue_ms=1e9, forward_ms=1e-9),
        receipt(1e-12),
        receipt(1e-320),
    ],
)
def test_a_hop_that_lies_about_its_times_stays_within_the_bounds(hostile: Receipt) -> None:
    window = Window()
    window.add(1.0, [hostile])
    window.add(1.0, [])
    assert 4 <= window.size(2, 1.0, BATCH) <= MOST
    assert window.size(48, 1.0, BATCH) >= 96, "never less than two for each stage"


def test_two_trainers_share_a_version_of_few_micro_batches() -> None:
    """With a window of more than the batch, the first one to ask would get all of it."""
    window = Window()
    window.add(1.0, [receipt(0.01), receipt(0.01)])
    assert window.size(2, 1.0, BATCH) == MOST
    assert window.size(2, 1.0, 12) == 12
