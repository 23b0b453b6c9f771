"""Methods that the tests of rpc call, and their server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from protocols.errors import CacheFullError, SpanNotServedError, SwarmError
from protocols.identity import Identity, from_seed
from protocols.services import Method
from swarm.rpc import Call, ChannelPool, Handler, PeerChannel, RpcServer, Stream, TlsCertificate, tls
from swarm.rpc.admission import Admission

ECHO = Method(name="echo", timeout_s=60.0)
LARGE = Method(name="large")
WAIT = Method(name="wait", timeout_s=60.0)
FAIL = Method(name="fail")
REMAINING = Method(name="remaining", timeout_s=70.0)
TALK = Method(name="talk", streaming=True, timeout_s=None, is_idempotent=False)
METHODS = (ECHO, LARGE, WAIT, FAIL, REMAINING, TALK)

SERVER, CALLER, STRANGER = (from_seed(bytes([number]) * 32) for number in (1, 2, 3))


@dataclass
class Handlers:
    """What the tests may look at afterwards."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    num_calls: int = 0
    seen: asyncio.Queue[object] = field(default_factory=asyncio.Queue)
    """How each `talk` and `wait` ended: "end", or the exception."""

    def table(self) -> Mapping[str, Handler]:
        return {
            "echo": self.echo,
            "large": self.large,
            "wait": self.wait,
            "fail": self.fail,
            "remaining": self.remaining,
            "talk": self.talk,
        }

    async def echo(self, request: bytes, call: Call) -> bytes:
        self.num_calls += 1
        return call.peer.encode() + request

    async def large(self, request: bytes, call: Call) -> bytes:
        return bytes(int(request))

    async def wait(self, request: bytes, call: Call) -> bytes:
        self.seen.put_nowait("wait begins")
        try:
            await self.release.wait()
        except BaseException as error:
            self.seen.put_nowait(error)
            raise
        return b"released"

    async def remaining(self, request: bytes, call: Call) -> bytes:
        return str(call.remaining_s()).encode()

    async def fail(self, request: bytes, call: Call) -> bytes:
        if request == b"ours":
            raise CacheFullError("no memory for 7 tokens, ünlimited memory required")
        if request == b"long":
            raise CacheFullError("ü" * 5_000)
        raise ValueError("a secret of the server")

    async def talk(self, stream: Stream, call: Call) -> None:
        """Echoes frames; `gap` refuses, `hold` waits for the release, `more` sends without being asked."""
        try:
            while (frame := await stream.receive()) is not None:
                if frame == b"gap":
                    raise SpanNotServedError("we wait for step 3")
                if frame == b"hold":
                    await self.release.wait()
                await stream.send(frame)
            self.seen.put_nowait("end")
        except BaseException as error:
            self.seen.put_nowait(error)
            raise


@dataclass
class Running:
    """A server and everything to call it with."""

    server: RpcServer
    handlers: Handlers
    address: str
    certificate: TlsCertificate
    pool: ChannelPool

    async def channel(self) -> PeerChannel:
        return await self.pool.channel(SERVER.peer_id, (self.address,), self.certificate.der)


@contextlib.asynccontextmanager
async def running(*, port: int = 0, admission: Admission | None = None, identity: Identity = SERVER) -> AsyncIterator[Running]:
    handlers, certificate, pool = Handlers(), tls.make(identity), ChannelPool(CALLER)
    server = RpcServer(identity, certificate, handlers.table(), port=port, methods=METHODS, admission=admission)
    try:
        yield Running(server, handlers, f"127.0.0.1:{await server.start()}", certificate, pool)
    finally:
        await pool.close()
        await server.stop()


async def error_of(awaitable: object, kind: type[SwarmError]) -> str:
    """The message of the error, which must be of that very class."""
    try:
        await awaitable  # type: ignore[misc]
    except SwarmError as error:
        assert type(error) is kind, repr(error)
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")
