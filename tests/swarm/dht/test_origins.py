"""The network of a caller: one question serves all that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hivemind.p2p import PeerID

from protocols.errors import PeerUnreachableError
from protocols.identity import from_seed
from swarm.dht.origins import MAX_PAUSE_S, Origins
from swarm.prefixes import UNKNOWN, prefix
from tests.virtual_time import virtual_time


def peer(number: int) -> PeerID:
    return PeerID.from_base58(from_seed(number.to_bytes(32)).peer_id)


@dataclass
class Daemon:
    """Says whom it is connected to, `takes_s` after it was asked."""

    connected: dict[PeerID, str] = field(default_factory=dict)
    takes_s: float = 0.0
    is_dead: bool = False
    num_asked: int = 0

    async def connections(self) -> Iterable[Any]:
        self.num_asked += 1
        await asyncio.sleep(self.takes_s)
        if self.is_dead:
            raise PeerUnreachableError("no answer")
        return [SimpleNamespace(peer_id=one, addrs=[address]) for one, address in self.connected.items()]


async def test_the_network_of_a_connection_is_told_and_remembered() -> None:
    daemon = Daemon({peer(1): "/ip4/203.0.113.7/tcp/4001", peer(2): "/ip6/2001:db8::1/tcp/4001", peer(3): "/p2p-circuit"})
    origins = Origins(daemon.connections)
    assert await origins.of(peer(1)) == prefix("203.0.113.7") and await origins.of(peer(2)) == prefix("2001:db8::1")
    assert await origins.of(peer(3)) == UNKNOWN and daemon.num_asked == 1


async def test_callers_that_are_gone_wait_for_one_question_together() -> None:
    daemon = Daemon({peer(0): "/ip4/203.0.113.7/tcp/4001"}, takes_s=0.05)
    origins = Origins(daemon.connections)
    first = asyncio.create_task(origins.of(peer(1)))
    while not daemon.num_asked:  # noqa: ASYNC110  (its question is under way: who comes now may have connected since)
        await asyncio.sleep(0)
    found = await asyncio.gather(first, *(origins.of(peer(number)) for number in range(2, 40)))
    assert set(found) == {UNKNOWN} and daemon.num_asked == 2
    assert await origins.of(peer(0)) == prefix("203.0.113.7") and daemon.num_asked == 2


@virtual_time
async def test_the_pause_between_two_questions_has_a_bound() -> None:
    daemon, now_s = Daemon(), [0.0]
    origins = Origins(daemon.connections, lambda: now_s[0])

    async def slow() -> Iterable[Any]:
        now_s[0] += 3.0
        return await daemon.connections()

    origins._connections = slow
    await origins.of(peer(1))
    began_s = asyncio.get_running_loop().time()
    await origins.of(peer(2))
    assert daemon.num_asked == 2 and asyncio.get_running_loop().time() - began_s == MAX_PAUSE_S


async def test_a_daemon_that_does_not_answer_wipes_nothing() -> None:
    daemon = Daemon({peer(0): "/ip4/203.0.113.7/tcp/4001"})
    origins = Origins(daemon.connections)
    await origins.of(peer(0))
    daemon.is_dead = True
    assert await origins.of(peer(1)) == UNKNOWN and await origins.of(peer(0)) == prefix("203.0.113.7")
