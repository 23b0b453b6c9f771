"""A hostile node, as a real peer.

It announces all blocks of the model as the fastest, and answers sessions as an attack wants.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from attacks.target import Target, untrusted_peer
from protocols import services
from protocols.hosted import NO_LOAD, Hosted, Load
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer, software
from swarm.rpc import Call
from swarm.rpc.stream import Stream

OnSession = Callable[[Stream, Call], Awaitable[None]]


def record_of(peer: Peer, model: ModelId, num_blocks: int) -> PeerRecord:
    """It claims all blocks, embedding and head, in 0.01 ms."""
    load = Load(free_tokens=1 << 20, step_ms=0.01)
    blocks = Hosted(unit=Blocks(0, num_blocks), weights=Weights(model), num_blocks=num_blocks, dtype="float32", load=load)
    return PeerRecord(
        peer=peer.peer_id,
        software=software(),
        addresses=peer.addresses,
        certificate=peer.certificate,
        state="serving",
        hosted=(blocks, replace(blocks, unit=Ends(), load=NO_LOAD)),
        reachable=True,
    )


@contextlib.asynccontextmanager
async def hostile_node(target: Target, model: ModelId, on_session: OnSession) -> AsyncIterator[Peer]:
    """In the swarm, announced, until the block ends."""
    config = PeerConfig(swarm=target.swarm, bootstrap=target.addresses[:2], listen=("127.0.0.1", 0), client_mode=False)

    async def counted(stream: Stream, call: Call) -> None:
        target.arrived["sessions"] += 1
        await on_session(stream, call)

    handlers = {services.SESSION.name: counted, services.ATTACH.name: counted}
    async with Peer(config, handlers) as peer:
        await peer.joined()
        await peer.directory.announce(lambda: record_of(peer, model, target.num_blocks), [target.model])
        yield peer


async def announce(target: Target, on_session: OnSession) -> None:
    """Announce one, until cancelled."""
    model = (await untrusted_peer(target)).weights.model
    async with hostile_node(target, model, on_session):
        target.on_attack()
        await asyncio.Event().wait()
