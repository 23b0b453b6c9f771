"""One swarm for all tests here, since starting its nodes takes time.

At the end, the pauses that deaths have cost are printed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.end_to_end.local_swarm import LocalSwarm
from tests.end_to_end.processes import ProcessPool
from tests.forked import ForkServer

_pauses_s: list[float] = []


@pytest.fixture(scope="session")
def running_swarm(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("swarm")
    with ProcessPool(folder, fork_server) as pool:
        swarm = LocalSwarm(folder, pool)
        yield swarm
        _pauses_s.extend(swarm.pauses_s)
        swarm.close()


@pytest.fixture
def swarm(running_swarm: LocalSwarm) -> LocalSwarm:
    """All nodes are alive, no fault is armed, no peer is blamed."""
    running_swarm.renew()
    return running_swarm


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _pauses_s:
        pauses_ms = sorted(1e3 * pause for pause in _pauses_s)
        summary = {
            "deaths": len(pauses_ms),
            "median_ms": round(statistics.median(pauses_ms)),
            "p90_ms": round(pauses_ms[int(0.9 * len(pauses_ms))]),
            "max_ms": round(pauses_ms[-1]),
        }
        terminalreporter.write_line(f"pauses at deaths: {json.dumps(summary)}")
