"""A node goes on while its DHT is started again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hivemind.p2p import P2P

from node.placement import neighbours
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.peer import dht_keeper
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.training.election import Trainers
from swarm.training.members import Members
from tests.hosting import hosted

MODEL = ModelId("tiny", "a" * 64)


def record(peer: Peer) -> PeerRecord:
    return PeerRecord(
        peer=peer.peer_id, addresses=peer.addresses, certificate=peer.certificate, hosted=hosted(MODEL, Span(0, 4), 4)
    )


class Broken:
    """p2pd ends as soon as it has started, as long as `is_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on, self.num_starts, self._create = False, 0, P2P.create
        monkeypatch.setattr(P2P, "create", self.create)

    async def create(self, **options: Any) -> P2P:
        p2p = await self._create(**options)
        self.num_starts += 1
        if self.is_on:
            p2p._child.kill()
        return p2p


async def test_a_node_outlives_a_daemon_that_ends_as_soon_as_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "RECORD_RENEW_S", 0.01)
    monkeypatch.setattr(dht_keeper, "_RESTART_S", 0.01)
    broken = Broken(monkeypatch)
    async with (
        Peer(PeerConfig(data_dir=tmp_path)) as first,
        Peer(PeerConfig(data_dir=tmp_path, bootstrap=first.multiaddrs)) as second,
        asyncio.timeout(60.0),
    ):
        await second.joined()
        await first.directory.announce(lambda: record(first), [MODEL.name])
        await second.directory.announce(lambda: record(second), [MODEL.name])
        assert await second.directory.refresh()
        asked, answered = asyncio.Event(), asyncio.Event()

        async def find() -> list[PeerRecord]:
            asked.set()
            found = await second.directory.snapshot(MODEL.name)
            answered.set()
            return list(found.peers)

        measuring = asyncio.create_task(neighbours.keep_measuring(second, find))
        await answered.wait()
        broken.is_on, before = True, broken.num_starts
        second._dht._running.p2p._child.kill()
        while broken.num_starts < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asked.clear()
        await asked.wait()
        assert not await second.directory.refresh()
        assert await Members(MODEL, second.directory, second.pool).look() == []
        assert await Trainers(MODEL, second.peer_id, second.directory, second.pool).look(None) == []  # type: ignore[arg-type]
        answered.clear()
        broken.is_on = False
        await answered.wait()
        assert not measuring.done()
        measuring.cancel()
        while first.peer_id not in {one.peer for one in await find()}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
