"""Any hop may die at any moment, and the answer is the one that transformers gives on one machine. Real processes, `kill -9`."""

from __future__ import annotations

import os
import random
import secrets
import signal

import pytest

from tests.end_to_end.town import FIRST_DECODE, LAST_DECODE, Town

SEED = int(os.environ.get("SWARM_TEST_SEED") or secrets.randbelow(1 << 30))
"""Chooses hops and steps; printed by every test, and set again with SWARM_TEST_SEED."""

PREFILL, EARLY, LATE = (0, FIRST_DECODE - 1), (FIRST_DECODE, FIRST_DECODE + 5), (FIRST_DECODE + 10, LAST_DECODE - 1)
"""Steps of the prompt's chunks; decode steps at which all is still kept as frames; decode steps at which most is history."""


def moments() -> list[tuple[int, str, int]]:
    """Twenty (hop, point, step): every point of a step in every phase, every hop at its opening, and whatever else the dice say."""
    dice = random.Random(SEED)
    points = ("before_compute", "after_compute", "before_send", "after_send")
    chosen = [(hop, "opened", 0) for hop in range(3)]
    hops = [0, 1, 2] * 4
    dice.shuffle(hops)
    phases = [(point, phase) for point in points for phase in (PREFILL, EARLY, LATE)]
    chosen += [(hop, point, dice.randint(*phase)) for hop, (point, phase) in zip(hops, phases, strict=True)]
    while len(chosen) < 20:
        chosen.append((dice.randrange(3), dice.choice(points), dice.randint(0, LAST_DECODE - 1)))
    return chosen


@pytest.mark.parametrize(("hop", "point", "step"), [pytest.param(*moment, id=f"moment{n}") for n, moment in enumerate(moments())])
def test_a_hop_dies_and_no_token_changes(town: Town, hop: int, point: str, step: int) -> None:
    print(f"seed {SEED}: hop {hop} dies at {point}:step={step}")
    fault = town.arm(hop, f"{point}:step={step}")
    ids = town.prompt(SEED + step)
    answer, journey = town.answer(ids)
    assert answer == town.expected(ids)
    assert not fault.exists(), "nobody died, so this test has shown nothing"
    assert journey.replaced >= 1
    print("pauses", journey.pauses_s)


@pytest.mark.parametrize("hop", range(3))
def test_a_hop_is_killed_between_two_tokens(town: Town, hop: int) -> None:
    def kill(number: int, journey: object) -> None:
        if number == 9:
            assert town.on_route(journey, hop).end(signal.SIGKILL) == -signal.SIGKILL

    ids = town.prompt(SEED + 100 + hop)
    answer, journey = town.answer(ids, kill)
    assert answer == town.expected(ids)
    assert journey.replaced >= 1


@pytest.mark.parametrize("hops", [(0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_hops_die_at_once(town: Town, hops: tuple[int, ...]) -> None:
    def kill(number: int, journey: object) -> None:
        if number == 12:
            victims = [town.on_route(journey, hop) for hop in hops]
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
            assert all(victim.has_ended(10.0) for victim in victims)

    ids = town.prompt(SEED + 200)
    answer, journey = town.answer(ids, kill)
    assert answer == town.expected(ids)
    assert journey.replaced >= 1
    print("pauses", journey.pauses_s)


@pytest.mark.parametrize("point", ["opened:step=0", "before_history", "after_history"])
def test_the_replacement_dies_as_well(town: Town, point: str) -> None:
    """While it is being opened, and before and after it has been brought up to date."""
    first = town.arm(1, f"before_compute:step={LAST_DECODE - 5}")
    second = town.arm(1, point) if "opened" not in point else None
    if second is None:
        second = first.with_name("opened:step=0")

    def arm(number: int, journey: object) -> None:
        if number == 1 and point.startswith("opened"):
            town.arm(1, point)

    ids = town.prompt(SEED + 300)
    answer, journey = town.answer(ids, arm)
    assert answer == town.expected(ids)
    assert not first.exists() and not second.exists()
    assert journey.replaced >= 2


def test_a_survivor_dies_when_it_hears_of_a_death(town: Town) -> None:
    step = FIRST_DECODE + 8
    faults = [town.arm(1, f"before_compute:step={step}"), town.arm(0, f"opened:step={step + 1}")]
    ids = town.prompt(SEED + 400)
    answer, journey = town.answer(ids)
    assert answer == town.expected(ids)
    assert not any(fault.exists() for fault in faults)
    assert journey.replaced >= 2
