"""A hostile peer that sends a hop whatever a test wants.

It uses real streams, as the client, the hop above or the hop below.

`Probe` dials; `FakeHop` is dialled. Both have an identity of their own, so that every check of callers and grants is the real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protocols import compression, hello, inference, services
from protocols.identity import Identity
from protocols.ids import SessionId, Span
from protocols.inference import Attach, Grant, Hop, Message, Op, Open, Step
from protocols.records import PeerRecord
from protocols.units import Blocks
from protocols.weights_id import Weights
from swarm.rpc import tls
from swarm.rpc.call import Call
from swarm.rpc.pool import ChannelPool
from swarm.rpc.server import RpcServer
from swarm.rpc.stream import Stream
from tests.hosting import hosted
from tests.swarm.inference.toy import MODEL, NUM_BLOCKS, WIDTH, ToyNode, new_identity, random_tokens

WAIT_S = 60.0


def hop_of(node: ToyNode | FakeHop) -> Hop:
    return Hop(node.identity.peer_id, (node.address,), node.certificate.der, Blocks.of(node.span))


def absent_hop(start: int, stop: int, identity: Identity | None = None) -> Hop:
    """A route's hop that is not dialled: the probe itself, as the hop above."""
    return Hop((identity or new_identity()).peer_id, ("127.0.0.1:1",), b"", Blocks(start, stop))


def grant_of(
    client: Identity, route: Sequence[Hop], epoch: int = 0, session: bytes = b"s" * 16, expires_in_s: float = 60.0
) -> Grant:
    grant = Grant(client=client.peer_id, session=SessionId(session), epoch=epoch, weights=Weights(MODEL), route=tuple(route),
                  expires_s=time.time() + expires_in_s)  # fmt: skip
    return grant.signed(client.sign)


def step_of(number: int, values: Tensor | None = None, *, epoch: int = 0, counts: Sequence[int] | None = None,
            ops: Sequence[Op] = (), session: bytes = b"s" * 16, positions: Sequence[int] | None = None) -> Step:  # fmt: skip
    values = random_tokens(1) if values is None else values
    return Step(session=SessionId(session), epoch=epoch, step=number, counts=tuple(counts or [len(values)]), ops=tuple(ops),
                payload=compression.pack(values), positions=None if positions is None else tuple(positions))  # fmt: skip


@dataclass
class Line:
    """One stream, in messages."""

    stream: Stream

    async def say(self, *messages: Message | bytes) -> None:
        for message in messages:
            await self.stream.send(message if isinstance(message, bytes) else message.encode())

    async def hear(self) -> Message | None:
        """The next message; None at a clean end. A refusal raises."""
        async with asyncio.timeout(WAIT_S):
            data = await self.stream.receive()
        return None if data is None else inference.parse(data)

    async def hear_nothing_more(self) -> None:
        """The stream ends, cleanly or with the refusal that this raises."""
        while await self.hear() is not None:
            pass


class Probe:
    """Dials hops under `identity`."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity = identity or new_identity()
        self.pool = ChannelPool(self.identity)

    async def line(self, node: ToyNode, method: services.Method = services.SESSION) -> Line:
        channel = await self.pool.channel(node.identity.peer_id, (node.address,), node.certificate.der)
        return Line(await channel.stream(method))

    async def open(self, node: ToyNode, grant: Grant, index: int = 0, dtype: str = "float32") -> Line:
        line = await self.line(node)
        await line.say(Open(grant=grant, index=index, dtype=dtype))
        return line

    async def attach(self, node: ToyNode, grant: Grant, step: int = 0) -> Line:
        line = await self.line(node, services.ATTACH)
        await line.say(Attach(grant=grant, step=step))
        return line

    async def close(self) -> None:
        await self.pool.close()


@dataclass
class FakeHop:
    """A server whose session and attach streams the test itself answers: `await fake.lines.get()`, `fake.attached.get()`."""

    span: Span
    identity: Identity = field(default_factory=new_identity)
    lines: asyncio.Queue[Line] = field(default_factory=asyncio.Queue)
    attached: asyncio.Queue[Line] = field(default_factory=asyncio.Queue)
    address: str = ""

    def __post_init__(self) -> None:
        self.certificate = tls.make(self.identity)
        handlers = {
            services.SESSION.name: self._session,
            services.ATTACH.name: self._attach,
            services.HELLO.name: self._hello,
        }
        self.server = RpcServer(self.identity, self.certificate, handlers)
        self._release = asyncio.Event()

    async def start(self) -> FakeHop:
        self.address = f"127.0.0.1:{await self.server.start()}"
        return self

    async def _session(self, stream: Stream, call: Call) -> None:
        self.lines.put_nowait(Line(stream))
        await self._release.wait()

    async def _attach(self, stream: Stream, call: Call) -> None:
        self.attached.put_nowait(Line(stream))
        await self._release.wait()

    async def _hello(self, request: bytes, call: Call) -> bytes:
        return hello.Hello(software="fake", swarm="test").encode()

    def record(self) -> PeerRecord:
        """Announce itself as faster than any honest node."""
        served = hosted(MODEL, self.span, NUM_BLOCKS, free_tokens=10**6, step_ms=0.01)
        return PeerRecord(peer=self.identity.peer_id, addresses=(self.address,), certificate=self.certificate.der,
                          hosted=served)  # fmt: skip

    async def kill(self) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._release.set()
        await self.server.stop(0)


def nonsense() -> dict[str, Tensor]:
    """Hidden states that no hop takes, by what is wrong with them."""
    nan, infinite = torch.zeros(1, WIDTH), torch.zeros(1, WIDTH)
    nan[0, 1], infinite[0, 1] = float("nan"), float("inf")
    return {
        "NaN": nan,
        "infinity": infinite,
        "width": torch.zeros(1, WIDTH + 1),
        "rank": torch.zeros(1),
        "rank 3": torch.zeros(1, WIDTH, 1),
        "dtype": torch.zeros(1, WIDTH, dtype=torch.float16),
        "ids": torch.zeros(1, WIDTH, dtype=torch.int64),
    }
