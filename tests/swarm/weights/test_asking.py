"""One thing asked of several peers: whoever is asked has an end."""

from __future__ import annotations

import asyncio

import pytest

from protocols.identity import from_seed
from protocols.records import PeerRecord
from swarm.weights import asking
from swarm.weights.asking import Asking, Turn
from swarm.weights.standing import Standing

SILENT, GIVER = (PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id) for number in (1, 2))


async def test_a_peer_whose_turn_was_over_has_ended_when_the_result_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "AT_ONCE", 1)
    monkeypatch.setattr(asking, "JOIN_S", (0.01, 0.01, 0.01))
    told: list[str] = []

    async def ask(record: PeerRecord, turn: Turn) -> str:
        if record is GIVER:
            return "here"
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            told.append("ended")
        raise AssertionError("unreachable")

    asked = Asking([SILENT, GIVER], ask, "something", Standing())
    for waiting in asked._waiting:
        waiting.turn_s = 0.05
    assert await asked.result(5.0) == "here" and told == ["ended"]
