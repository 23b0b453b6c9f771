"""Replicas behind real servers in one event loop, and a trainer's calls."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protocols.averaging import Applied, Closed
from protocols.groups import Group, GroupId, Member
from protocols.identity import Identity, from_seed
from swarm.averaging.asking import ask_to_apply, ask_to_close
from swarm.averaging.averager import Averager
from swarm.rpc import ChannelPool, Handlers, RpcServer, tls
from tests.swarm.averaging.toy import RUN, UNITS, ToyReplica

TRAINER = from_seed(b"T" * 32)
Wrap = Callable[[int, dict[str, Any]], dict[str, Any]]


@dataclass
class Peer:
    """One of them."""

    identity: Identity
    replica: ToyReplica
    pool: ChannelPool
    averager: Averager
    server: RpcServer
    member: Member

    async def stop(self) -> None:
        """Gone, as far as others can tell."""
        await self.server.stop()
        await self.averager.stop()
        await self.pool.close()


@dataclass
class Peers:
    """Some replicas of RUN's units, and the trainer's pool."""

    all: list[Peer]
    pool: ChannelPool
    num_indices: int = 12
    group_defaults: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Peer:
        return self.all[number]

    def group(self, members: Sequence[int] | None = None, **changes: Any) -> Group:
        """Of these members (None: all), with a new id, for the version of the first."""
        chosen = [self.all[number] for number in (range(len(self.all)) if members is None else members)]
        group = Group(id=GroupId(secrets.token_bytes(16)), run=RUN, version=chosen[0].replica.version, units=UNITS,
                      members=tuple(peer.member for peer in chosen), num_micro_batches=self.num_indices,
                      deadline_s=60.0)  # fmt: skip
        return replace(group, **(self.group_defaults | changes))

    def fill(self, skip: Sequence[int] = ()) -> None:
        """Each index to one replica, in turn."""
        for index in range(self.num_indices):
            if index not in skip:
                assert self.all[index % len(self.all)].replica.add(index)

    async def close(self, group: Group) -> Closed:
        return await ask_to_close(self.pool, group)

    async def apply(self, group: Group, members: Sequence[int] | None = None) -> list[Applied]:
        chosen = [self.all[number] for number in (range(len(self.all)) if members is None else members)]
        return await asyncio.gather(
            *(ask_to_apply(self.pool, peer.member, group.run, group.version, group.id) for peer in chosen)
        )


@contextlib.asynccontextmanager
async def running(number: int, wrap: Wrap | None = None, **how: Any) -> AsyncIterator[Peers]:
    """So many replicas. wrap: from a peer's number and handlers to the handlers that it serves."""
    peers, pool = Peers([], ChannelPool(TRAINER)), None
    try:
        for place in range(number):
            peers.all.append(await start(from_seed(bytes([place + 1]) * 32), ToyReplica(**how), place, wrap))
        pool = peers.pool
        yield peers
    finally:
        await peers.pool.close()
        await asyncio.gather(*(peer.stop() for peer in peers.all))
        del pool


async def start(identity: Identity, replica: ToyReplica, place: int = 0, wrap: Wrap | None = None) -> Peer:
    pool, certificate = ChannelPool(identity), tls.make(identity)
    averager = Averager(identity, pool, lambda run: replica)
    handlers: Handlers = averager.handlers()
    server = RpcServer(identity, certificate, handlers if wrap is None else wrap(place, dict(handlers)))
    address = f"127.0.0.1:{await server.start()}"
    member = Member(peer=identity.peer_id, addresses=(address,), certificate=certificate.der)
    return Peer(identity, replica, pool, averager, server, member)
