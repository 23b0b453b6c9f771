"""After a restart of p2pd, a peer joins by all at once."""

from __future__ import annotations

import asyncio

from protocols.errors import PeerUnreachableError
from protocols.hello import Hello
from protocols.identity import from_seed
from protocols.ids import peer_id_of
from swarm.dht.address import PeerAddress
from swarm.meeting.bootstrap import NOBODY_ELSE, Finder
from swarm.meeting.entering import ANYBODY
from swarm.peer.config import PeerConfig
from swarm.peer.contacts import Contacts
from swarm.peer.greeter import Greeter

MET = [PeerAddress("ip4", f"192.168.{number}.7", 4001, peer_id_of(bytes([number] * 32))) for number in range(3)]


class Together:
    """A DHT in which no join ends before all have begun; all but one fail."""

    def __init__(self) -> None:
        self.num_neighbours = 0
        self._all_ask = asyncio.Barrier(len(MET))

    async def is_alone(self) -> bool:
        return True

    async def join(self, address: PeerAddress) -> None:
        async with asyncio.timeout(60.0):
            await self._all_ask.wait()
        if address != MET[-1]:
            raise PeerUnreachableError("silent")
        self.num_neighbours = 1

    async def look_around(self) -> None:
        pass

    def end_daemon(self) -> None:
        raise AssertionError("no dial was paused")


async def test_a_silent_one_delays_no_other() -> None:
    greeter, identity, dht = Greeter(Hello(software="test", swarm="public"), ANYBODY), from_seed(bytes(32)), Together()
    greeter.start_asking(identity, Finder(NOBODY_ELSE, identity.peer_id, None))
    contacts = Contacts(PeerConfig(), greeter, dht)
    greeter.finder.note_answering(MET)
    await contacts.rejoin()
    assert dht.num_neighbours == 1
    await greeter.pool.close()
