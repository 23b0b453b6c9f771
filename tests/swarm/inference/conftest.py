"""A swarm of toy nodes for every test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.swarm.inference.probe import Probe
from tests.swarm.inference.toy import ToyNode, ToySwarm, fresh_seed


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    """Without nodes at first (`swarm.serve`); all end with the test."""
    fresh_seed()
    toys = ToySwarm()
    yield toys
    await toys.stop()


@pytest.fixture
async def node(swarm: ToySwarm) -> ToyNode:
    """The only hop of its route: first and last at once."""
    return await swarm.serve(0, 4)


@pytest.fixture
async def client() -> AsyncIterator[Probe]:
    probe = Probe()
    yield probe
    await probe.close()
