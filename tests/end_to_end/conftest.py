"""One town for all tests here: starting its nodes is what takes time. At the end, the pauses that deaths have cost are printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.end_to_end.processes import Nursery
from tests.end_to_end.town import Town
from tests.forked import ForkServer

_pauses_s: list[float] = []


@pytest.fixture(scope="session")
def running_town(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Town]:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("town")
    with Nursery(folder, fork_server) as nursery:
        town = Town(folder, nursery)
        yield town
        _pauses_s.extend(town.pauses_s)
        town.close()


@pytest.fixture
def town(running_town: Town) -> Town:
    """Everybody alive, nothing armed, nobody blamed."""
    running_town.renew()
    return running_town


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
