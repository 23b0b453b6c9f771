"""Untrusted peers at the port do not disturb a server.

They send bytes before any credential, requests that never end, and open connections without calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocols import services
from protocols.defaults import MAX_PART_BYTES, MAX_REQUEST_BYTES
from protocols.errors import FrameError, SwarmError
from protocols.identity import from_seed
from swarm.rpc import ChannelPool, auth, tls
from swarm.rpc.call import Call
from swarm.rpc.server import RpcServer
from tests.hostile.lonely_server import IDENTITY
from tests.hostile.raw import RawCaller
from tests.swarm.inference.toy import until

PATIENT, STRANGER = from_seed(b"h" * 32), from_seed(b"x" * 32)
FEW = 1_024
"""Descriptors of a process by default on most systems."""


@dataclass
class Lonely:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    der: bytes

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    @property
    def num_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def credential(self) -> tuple[str, bytes]:
        """Binary metadata travel as base64; what is no base64 of a valid one proves nothing."""
        import base64

        blob = auth.credential(STRANGER, tls.fingerprint(self.der), time.time() + auth.LIFE_S)
        return auth.METADATA_KEY, base64.b64encode(blob).rstrip(b"=")

    async def hello(self, timeout_s: float = 60.0) -> bytes:
        """As an honest peer that comes for the first time."""
        pool = ChannelPool(PATIENT)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(SwarmError):
                        channel = await pool.channel(IDENTITY.peer_id, (self.address,), self.der)
                        return await channel.unary(services.HELLO, b"hi", 20.0)
                    await asyncio.sleep(0.1)
        finally:
            await pool.close()


@pytest.fixture
def lonely(request: pytest.FixtureRequest) -> Iterator[Lonely]:
    """Ends a connection without a call after 4 s, or after so many as a test is parametrized with."""
    command = [sys.executable, "-m", "tests.hostile.lonely_server", str(FEW), str(getattr(request, "param", 4))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    port, der = process.stdout.readline().split()
    yield Lonely(process, int(port), bytes.fromhex(der))
    process.stdin.close()
    process.wait(60)


@pytest.mark.parametrize("path", [services.HELLO.path, services.SESSION.path])
async def test_a_caller_without_a_credential_cannot_make_a_server_hold_bytes(lonely: Lonely, path: str) -> None:
    """Eight requests of 60 MB that never end: 243 MB for over a minute, before."""
    await lonely.hello()
    before = lonely.memory_bytes
    caller = await asyncio.to_thread(RawCaller, lonely.address)
    for _ in range(8):
        caller.begin(path)
    sent = await asyncio.to_thread(caller.pour, 60_000_000, 30_000_000, 60.0)
    assert len(caller.ended) == 8 or caller.is_gone  # each was refused while its request was still to come
    assert sent <= 8 << 20 and lonely.memory_bytes - before < 24 << 20
    caller.close()
    assert await lonely.hello()


@pytest.mark.parametrize("lonely", [600], indirect=True)
async def test_a_connection_without_a_credential_is_closed_after_a_few_refusals(lonely: Lonely) -> None:
    caller = await asyncio.to_thread(RawCaller, lonely.address)
    for _ in range(40):
        caller.begin(services.HELLO.path)
    await until(lambda: (caller._hear(0.05), caller.is_gone)[1])
    assert len(caller.ended) >= 32
    caller.close()
    assert await lonely.hello()


@pytest.mark.parametrize("lonely", [8], indirect=True)
async def test_unfinished_requests_of_a_stranger_are_bounded_and_end(lonely: Lonely) -> None:
    """A credential costs nothing to make: so neither a large claim nor many small ones may pile up."""
    await lonely.hello()
    before = lonely.memory_bytes
    caller = await asyncio.to_thread(RawCaller, lonely.address)
    for _ in range(8):
        caller.begin(services.HELLO.path, [lonely.credential()])
    assert await asyncio.to_thread(caller.pour, 60_000_000, 30_000_000, 60.0) <= 24 << 20
    assert len(caller.ended) == 8  # a claim beyond what is read at once is refused by its first bytes
    for _ in range(40):
        caller.begin(services.HELLO.path, [lonely.credential()])
    await asyncio.to_thread(caller.pour, MAX_PART_BYTES, MAX_PART_BYTES - 1, 1.0)
    assert not caller.is_gone
    assert lonely.memory_bytes - before < 140 << 20  # 16 of 4 MiB that are read, and 1 MiB of each other
    assert await lonely.hello()  # and others are answered meanwhile
    await until(lambda: (caller._hear(0.05), len(caller.ended) == 48)[1])
    caller.close()


async def test_a_request_has_a_small_limit_and_a_deadline_from_its_start() -> None:
    reached: list[bytes] = []

    async def hello(request: bytes, call: Call) -> bytes:
        reached.append(request)
        return request

    certificate = tls.make(IDENTITY)
    server, pool = RpcServer(IDENTITY, certificate, {"hello": hello}), ChannelPool(PATIENT)
    address = f"127.0.0.1:{await server.start()}"
    try:
        channel = await pool.channel(IDENTITY.peer_id, (address,), certificate.der)
        assert len(await channel.unary(services.HELLO, bytes(MAX_REQUEST_BYTES))) == MAX_REQUEST_BYTES
        with pytest.raises(FrameError, match="at most 65536 bytes"):
            await channel.unary(services.HELLO, bytes(MAX_REQUEST_BYTES + 1))
        generous = services.Method(name="hello", max_request_bytes=1 << 20)  # as one that does not check by itself
        with pytest.raises(FrameError, match="at most 65536 bytes"):
            await channel.unary(generous, bytes(MAX_REQUEST_BYTES + 1))
        assert len(reached) == 1
    finally:
        await pool.close()
        await server.stop()


# --- connections


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4_096 if hard == resource.RLIM_INFINITY else min(hard, max(soft, 4_096))
    if wanted < 2_000:
        pytest.skip("this system gives a process too few descriptors for the attack")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def idle(lonely: Lonely, number: int) -> AsyncIterator[list[socket.socket]]:
    """TCP connections on which nothing is said, for as long as the context lasts."""
    sockets: list[socket.socket] = []

    def connect() -> None:
        for _ in range(number):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", lonely.port))
            sockets.append(one)

    connect()
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def test_a_thousand_idle_connections_do_not_lock_others_out(lonely: Lonely, many_descriptors: None) -> None:
    """More than the server has descriptors, all of one address, which is the honest caller's, too."""
    await lonely.hello()
    before = lonely.num_descriptors
    async with idle(lonely, 1_100) as sockets:
        assert await lonely.hello()
        await until(lambda: lonely.num_descriptors <= before + 160)  # a quarter of the half of its descriptors
        gone = 0
        for one in sockets:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                gone += one.recv(1) == b""
        assert gone > 900  # they were accepted and closed, not merely kept waiting
        await until(lambda: lonely.num_descriptors <= before + 4)  # the rest never proved anything
    assert await lonely.hello()
