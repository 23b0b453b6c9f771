"""T1 to T9 of an answer are what its steps say."""

from __future__ import annotations

import re

import pytest

from protocols.inference import Hop
from protocols.timings import HopTime
from protocols.units import Blocks
from swarm.timings import STAGES, StepTime, Timings
from tests.protocols.samples import ALICE, BOB

ROUTE = tuple(Hop(peer.peer_id, ("127.0.0.1:1",), b"", blocks) for peer, blocks in ((ALICE, Blocks(0, 2)), (BOB, Blocks(2, 4))))


def step(*totals_ms: float, wait_ms: float = 20.0, route_ms: float = 0.0) -> StepTime:
    hops = [HopTime(index=index, queue_ms=1.0, compute_ms=2.0, total_ms=total) for index, total in enumerate(totals_ms)]
    return StepTime(
        route=ROUTE, hops=hops, num_tokens=1, route_ms=route_ms, frame_ms=0.5, wait_ms=wait_ms, sent_bytes=4, received_bytes=8
    )


def made() -> Timings:
    timings = Timings(wait_ms=1.0, tokenize_ms=2.0)
    timings.add(step(4.0, 5.0, route_ms=30.0))
    timings.picked(0.25)
    for _ in range(3):
        timings.add(step(4.0, 5.0))
        timings.picked(0.001)
    return timings


def test_the_stages_of_an_answer_are_the_sums_over_its_steps() -> None:
    timings = made()
    assert (timings.prompt.num_steps, timings.later.num_steps, timings.prompt.pick_ms) == (1, 3, 250.0)
    assert timings.stages() == pytest.approx(
        {"T1": 1.0, "T2": 2.0, "T3": 30.0, "T4": 2.0, "T5": 12.0, "T6": 8.0, "T7": 16.0, "T8": 44.0, "T9": 253.0}
    )
    assert [(hop.peer, hop.blocks, hop.num_steps) for hop in timings.hops.values()] == [
        (ALICE.peer_id, "decoder/0:2", 4), (BOB.peer_id, "decoder/2:4", 4)
    ]  # fmt: skip


def test_hops_that_overlap_leave_no_time_for_the_network_and_hops_that_say_nothing_all() -> None:
    timings = Timings()
    timings.add(step(15.0, 15.0))
    assert timings.stages()["T8"] == 0
    timings.add(step())
    assert timings.stages()["T8"] == 20


def test_the_header_names_each_stage_once_in_its_order() -> None:
    found = re.findall(r'(T\d);dur=([\d.]+);desc="([^"]+)"', made().server_timing())
    assert [(name, text) for name, _, text in found] == list(STAGES.items())
    assert dict((name, float(ms)) for name, ms, _ in found) == pytest.approx(made().stages())


def test_as_json_the_prompt_stands_apart_from_the_later_steps() -> None:
    told = made().as_json()
    assert told["T3"] == 30.0 and told["prompt"]["T7"] == 4.0 and told["later"]["steps"] == 3
    assert told["hops"][1] == {
        "peer": BOB.peer_id, "blocks": "decoder/2:4", "steps": 4, "T5": 8.0, "T6": 4.0, "T7": 8.0
    }  # fmt: skip
