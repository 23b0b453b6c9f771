"""An attacker of the DHT: plain hivemind, with many made-up peers.

It has a key of its own and follows none of our rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from protocols.directory import DirectoryRequest
from protocols.entries import SignedEntry, key_id, packed_subkey, seal
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from swarm.peer.peer import Peer
from tests.hosting import hosted

MODEL = ModelId("tiny", "f" * 64)


@dataclass(frozen=True, slots=True)
class Item:
    """One signed entry of a peer, real or not."""

    key: bytes
    author: PeerId
    entry: SignedEntry

    @property
    def subkey(self) -> bytes:
        return packed_subkey(self.author)


def made_up(count: int, swarm: str, expires_s: float, model: ModelId = MODEL) -> list[Item]:
    """Well-formed records of peers that do not exist, at addresses that are silent, signed by each."""
    span = hosted(model, Span(0, 4), 4, ends=True, step_ms=0.01)
    request, items = DirectoryRequest(swarm=swarm, model=model.name), []
    for number in range(count):
        author = from_seed(b"made up" + number.to_bytes(25))
        record = PeerRecord(peer=author.peer_id, addresses=(f"192.0.2.{number % 250}:4001",), hosted=span)
        key = key_id(request.key(author.peer_id))
        items.append(Item(key, author.peer_id, seal(author, key, record.encode(), expires_s)))
    return items


def junk(author: Identity, count: int, expires_s: float) -> list[Item]:
    """What is signed rightly, and is nothing: 1 KB under each of many keys."""
    keys = [os.urandom(20) for _ in range(count)]
    return [Item(key, author.peer_id, seal(author, key, os.urandom(1_000), expires_s)) for key in keys]


class Mallory:
    """One attacker, connected by libp2p under one PeerID."""

    def __init__(self, identity: Identity, node: DHTNode) -> None:
        self.identity, self._node = identity, node

    async def store(self, target: Peer, items: Sequence[Item], batch: int = 16) -> list[bool]:
        """Ask a node to keep them; what it says of each. A request that it refuses is a list of False."""
        batches = [items[at : at + batch] for at in range(0, len(items), batch)]
        limit = asyncio.Semaphore(8)

        async def send(one: Sequence[Item]) -> list[bool]:
            request = dht_pb2.StoreRequest(
                keys=[item.key for item in one],
                subkeys=[item.subkey for item in one],
                values=[item.entry.value for item in one],
                expiration_time=[item.entry.expires_s for item in one],
                in_cache=[False] * len(one),
            )
            async with limit:
                response = await self._call(target, "rpc_store", request)
            return list(response.store_ok) if response else [False] * len(one)

        return [is_kept for kept in await asyncio.gather(*map(send, batches)) for is_kept in kept]

    async def find(self, target: Peer, keys: Sequence[bytes], node_id: bytes = b"") -> dht_pb2.FindResponse | None:
        return await self._call(target, "rpc_find", dht_pb2.FindRequest(keys=keys, peer=dht_pb2.NodeInfo(node_id=node_id)))

    async def _call(self, target: Peer, method: str, request: object) -> object:
        stub = self._node.protocol.get_stub(PeerID.from_base58(target.peer_id))
        try:
            return await getattr(stub, method)(request, timeout=10.0)
        except Exception as error:
            assert "Handler" in type(error).__name__ or "refus" in repr(error) or "at most" in repr(error), repr(error)
            return None


@contextlib.asynccontextmanager
async def mallory(*targets: Peer) -> AsyncIterator[Mallory]:
    """Connected to all targets."""
    identity = from_seed(os.urandom(32))
    with tempfile.NamedTemporaryFile() as key:
        key.write(identity.private_bytes)
        key.flush()
        node = await DHTNode.create(
            identity_path=key.name,
            check_if_identity_free=False,
            initial_peers=[address for target in targets for address in target.multiaddrs],
            client_mode=True,
            strict=False,
            nat_port_map=False,
            no_listen=True,
        )
    try:
        yield Mallory(identity, node)
    finally:
        await node.shutdown()


def random_node_id() -> bytes:
    result: bytes = DHTID.generate(os.urandom(16)).to_bytes()
    return result
