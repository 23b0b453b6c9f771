"""Any hop may die at any moment, and no token changes.

The answer is the one that transformers gives on one machine. Processes are real and killed by `kill -9`.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.end_to_end.local_swarm import FIRST_DECODE, LAST_DECODE, LocalSwarm

SEED = int(os.environ.get("SWARM_TEST_SEED") or secrets.randbelow(1 << 30))
"""Chooses hops and steps; printed by every test, and set again with SWARM_TEST_SEED."""

PREFILL, EARLY, LATE = (0, FIRST_DECODE - 1), (FIRST_DECODE, FIRST_DECODE + 5), (FIRST_DECODE + 10, LAST_DECODE - 1)
"""Steps of the prefill chunks; decode steps at which all is still kept as frames; decode steps at which most is history."""


def moments() -> list[tuple[int, str, int]]:
    """Twenty (hop, point, step): every point of a step in every phase, every hop at its opening, and at random."""
    rng = random.Random(SEED)
    points = ("before_compute", "after_compute", "before_send", "after_send")
    chosen = [(hop, "opened", 0) for hop in range(3)]
    hops = [0, 1, 2] * 4
    rng.shuffle(hops)
    phases = [(point, phase) for point in points for phase in (PREFILL, EARLY, LATE)]
    chosen += [(hop, point, rng.randint(*phase)) for hop, (point, phase) in zip(hops, phases, strict=True)]
    while len(chosen) < 20:
        chosen.append((rng.randrange(3), rng.choice(points), rng.randint(0, LAST_DECODE - 1)))
    return chosen


@pytest.mark.parametrize(("hop", "point", "step"), [pytest.param(*moment, id=f"moment{n}") for n, moment in enumerate(moments())])
def test_a_hop_dies_and_no_token_changes(swarm: LocalSwarm, hop: int, point: str, step: int) -> None:
    print(f"SWARM_TEST_SEED={SEED}: hop {hop} dies at {point}:step={step}")
    fault = swarm.arm(hop, f"{point}:step={step}")
    swarm.check(swarm.prompt(SEED + step))
    assert not fault.exists(), "the moment never came"


@pytest.mark.parametrize("hops", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_hops_are_killed_at_once_between_two_tokens(swarm: LocalSwarm, hops: tuple[int, ...]) -> None:
    def kill(number: int, journey: Any) -> None:
        if number == 12:
            victims = [swarm.on_route(journey, hop) for hop in hops]
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
            assert all(victim.has_ended(60.0) and victim.code == -signal.SIGKILL for victim in victims)

    swarm.check(swarm.prompt(SEED + 200), kill)


@pytest.mark.parametrize("point", ["opened:step=0", "before_history", "after_history"])
def test_the_replacement_dies_as_well(swarm: LocalSwarm, point: str) -> None:
    """While it is being opened, and before and after it has been brought up to date."""
    faults = [swarm.arm(1, f"before_compute:step={LAST_DECODE - 5}")]

    def arm_the_next(number: int, journey: Any) -> None:
        if number == 1:  # the first replica has been opened by now
            faults.append(swarm.arm(1, point))

    answer = swarm.check(swarm.prompt(SEED + 300), arm_the_next)
    assert len(faults) == 2 and not any(fault.exists() for fault in faults)
    assert answer.replaced >= 2


def test_a_survivor_dies_when_it_hears_of_a_death(swarm: LocalSwarm) -> None:
    step = FIRST_DECODE + 8
    faults = [swarm.arm(1, f"before_compute:step={step}"), swarm.arm(0, f"opened:step={step + 1}")]
    answer = swarm.check(swarm.prompt(SEED + 400))
    assert not any(fault.exists() for fault in faults)
    assert answer.replaced >= 2


def test_replicas_die_in_turn_and_return_in_time(swarm: LocalSwarm) -> None:
    """Who failed is avoided for a while, but forgiven when there is no way without it."""

    def kill_and_start_anew(number: int, journey: Any) -> None:
        if number in (6, 12, 18):
            victim = swarm.on_route(journey, 2)
            assert victim.end(signal.SIGKILL) == -signal.SIGKILL
            swarm.start(victim.name)
            swarm.nodes[victim.name].wait_for("ready")

    ids = swarm.prompt(SEED + 700)
    answer = swarm.answer(ids, kill_and_start_anew)  # its pauses include our own waiting
    assert answer.tokens == swarm.expected(ids)
    assert answer.replaced >= 3


@pytest.mark.parametrize("hop", range(3))
def test_beam_search_survives_a_death(swarm: LocalSwarm, hop: int) -> None:
    """Three beams are three sequences that are reordered with every token: a replacement must get them as they are now."""
    fault = swarm.arm(hop, f"after_compute:step={FIRST_DECODE + 13}")
    swarm.check(swarm.prompt(SEED + 500, 60), num_beams=3)
    assert not fault.exists()


def test_three_sessions_survive_the_same_death(swarm: LocalSwarm) -> None:
    prompts = [swarm.prompt(SEED + 600 + number, 40 * (1 + number)) for number in range(3)]
    fault = swarm.arm(1, f"before_send:step={FIRST_DECODE + 9}")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(swarm.answer, prompts))
    assert [answer.tokens for answer in answers] == [swarm.expected(prompt) for prompt in prompts]
    assert not fault.exists()
    assert any(answer.replaced for answer in answers)
    swarm.pauses_s += [pause_s for answer in answers for pause_s in answer.pauses_s]


def test_a_client_outlives_every_node_that_it_knew(swarm: LocalSwarm) -> None:
    """Each node dies and comes back at another port, one half after the other; the addresses that the client was given are dead then."""
    ids = swarm.prompt(SEED + 500)
    for half in (swarm.names[:3], swarm.names[3:]):
        victims = [swarm.nodes[name] for name in half]
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        assert all(victim.has_ended(60.0) for victim in victims)
        for heal in (lambda: None, swarm.heal):
            heal()
            swarm.renew_client()
            assert swarm.answer(ids).tokens == swarm.expected(ids)
