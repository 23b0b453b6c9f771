"""Without a replica a call fails, or continues with a new node.

The error says which blocks are missing.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.errors import NoRouteError
from tests.end_to_end.local_swarm import LocalSwarm

LAST, BLOCKS = 2, "4:6"


def kill_all(swarm: LocalSwarm) -> None:
    """Every replica of the last hop."""
    for node in swarm.replicas(LAST):
        os.kill(node.pid, signal.SIGKILL)
    assert all(node.has_ended(60.0) for node in swarm.replicas(LAST))


def test_the_error_names_the_missing_blocks_and_what_would_help(swarm: LocalSwarm) -> None:
    route_timeout_s, killed_at_s = 4.0, [0.0]
    model = swarm.new_model(route_timeout_s=route_timeout_s)

    def kill(number: int, journey: Any) -> None:
        if number == 5:
            killed_at_s[0] = time.monotonic()
            kill_all(swarm)

    try:
        with pytest.raises(NoRouteError, match=rf"blocks {BLOCKS} of llama.*swarm node \S*llama --blocks {BLOCKS}"):
            swarm.answer(swarm.prompt(1), kill, model)
    finally:
        model.close()
    took_s = time.monotonic() - killed_at_s[0]
    print(f"the error came after {took_s:.1f} s")
    assert route_timeout_s <= took_s < ROUTE_TIMEOUT_S - 10, "it waited for a replica to come, and not for longer than was said"


def test_the_same_call_goes_on_when_a_node_joins_in_time(swarm: LocalSwarm) -> None:
    def kill_and_start_one_again(number: int, journey: Any) -> None:
        if number == 15:
            kill_all(swarm)
            swarm.start(f"{LAST}.1")

    ids = swarm.prompt(2)
    answer = swarm.answer(ids, kill_and_start_one_again)
    assert answer.tokens == swarm.expected(ids)
    assert answer.replaced >= 1
    print("pauses in s, the start of a node included:", [round(pause_s, 3) for pause_s in answer.pauses_s])
