"""One swarm for all tests here, since starting its nodes takes time.

The pauses that deaths have cost are recorded; `tests/conftest.py` prints them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.end_to_end.local_swarm import LocalSwarm
from tests.end_to_end.processes import ProcessPool
from tests.forked import ForkServer


@pytest.fixture(scope="package")
def running_swarm(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("swarm")
    with ProcessPool(folder, fork_server) as pool:
        swarm = LocalSwarm(folder, pool)
        yield swarm
        swarm.close()


@pytest.fixture
def swarm(running_swarm: LocalSwarm, record_property: Callable[[str, object], None]) -> Iterator[LocalSwarm]:
    """All nodes are alive, no fault is armed, no peer is blamed."""
    running_swarm.renew()
    yield running_swarm
    record_property("pauses_s", running_swarm.pauses_s)
    running_swarm.pauses_s = []
