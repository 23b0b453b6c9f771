"""New identities do not push old ones out of the known peers."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from protocols import services
from protocols.hello import Hello
from protocols.identity import Identity, from_seed
from swarm.dht.address import PeerAddress
from swarm.meeting import hello, known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.rpc import Call, Handlers, RpcServer, tls

NUM_IDENTITIES = 40
DAY_S = 86_400.0


def answering(identity: Identity) -> RpcServer:
    """A server that says hello, and does nothing else."""

    async def say_hello(request: bytes, call: Call) -> bytes:
        return hello.answer(Hello(software="made up", swarm="public"), request, time.time())

    handlers: Handlers = {services.HELLO.name: say_hello}
    return RpcServer(identity, tls.make(identity), handlers, "127.0.0.1", 0)


async def test_forty_identities_on_one_machine_leave_the_known_peers_in_the_file(tmp_path: Path) -> None:
    """Before, the 16 that answered last were kept: 17 identities were enough, and a restart began among the attacker's."""
    async with Peer(PeerConfig(data_dir=tmp_path)) as friend:
        file = known_peers.file_of(tmp_path, "public")
        known_peers.update(file, [PeerAddress.parse(friend.multiaddrs[0])], [], time.time() - 9 * DAY_S)
        find = FindConfig(known_peers=file)
        async with contextlib.AsyncExitStack() as stack:
            client = Peer(PeerConfig(client_mode=True, listen=None, find=find))
            await stack.enter_async_context(client)  # by the friend, the only one it knows
            for number in range(NUM_IDENTITIES):
                identity = from_seed(b"new" + number.to_bytes(29))
                server = answering(identity)
                port = await server.start()
                stack.push_async_callback(server.stop, 0.0)
                await client.hello(identity.peer_id, (f"127.0.0.1:{port}",))
        held = known_peers.load(file, time.time())
        assert len(held) == known_peers.MAX_PEERS, "the flood did not arrive, so this would show nothing"
        assert next(iter(held)).peer == friend.peer_id
        async with Peer(PeerConfig(client_mode=True, listen=None, find=find)) as again:
            assert again.num_neighbours == 1
