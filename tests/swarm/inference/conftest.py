"""A swarm of toy nodes for every test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.swarm.inference.toy import ToySwarm, fresh_seed


@pytest.fixture
async def swarm() -> AsyncIterator[ToySwarm]:
    """Without nodes at first (`swarm.serve`); all end with the test."""
    fresh_seed()
    toys = ToySwarm()
    yield toys
    await toys.stop()
