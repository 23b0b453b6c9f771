"""Members of a DHT that wait for each other for long."""

from __future__ import annotations

import pytest

from swarm.dht import node, protocol


@pytest.fixture(autouse=True)
def patient_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that gets no processor for some seconds counts as silent otherwise, and the test of something else fails."""
    monkeypatch.setattr(protocol, "ASK_S", 30.0)
    monkeypatch.setattr(node, "CONNECT_S", 30.0)
    for method in (node.Dht.get, node.Dht.store):
        monkeypatch.setattr(method, "__defaults__", (60.0,))
