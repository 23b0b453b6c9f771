"""A peer's addresses are dialled side by side.

And whose address a call comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from protocols import services
from protocols.errors import PeerUnreachableError, SwarmError
from swarm.rpc import Call, ChannelPool, RpcServer, dialling, tls
from swarm.rpc.caller import remote_of
from swarm.rpc.race import race
from tests.swarm.rpc.parts import CALLER, SERVER, running


@contextlib.contextmanager
def silent(num: int) -> Iterator[list[str]]:
    """Addresses that take connections and say nothing."""
    with contextlib.ExitStack() as held:
        places = []
        for _ in range(num):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            places.append(f"127.0.0.1:{listener.getsockname()[1]}")
        yield places


async def test_silent_addresses_cost_their_turn_not_their_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "CONNECT_S", 60.0)
    with silent(5) as silent_ones:
        async with running() as here:
            async with asyncio.timeout(50):  # the first silent one alone would cost 60 s
                channel = await here.pool.channel(SERVER.peer_id, (*silent_ones, here.address), here.certificate.der)
            assert channel.is_connected and here.pool.is_connected(SERVER.peer_id)
            assert not here.pool.is_connected(CALLER.peer_id)


async def test_the_first_that_succeeds_ends_the_others_and_what_came_too_is_discarded() -> None:
    ended: list[str] = []
    discarded: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")
        return "slow"

    async def fails() -> str:
        raise PeerUnreachableError("nobody")

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late"
        return "never"

    async def good() -> str:
        return "good"

    async def discard(late: str) -> None:
        discarded.append(late)

    assert await race([slow, fails, stubborn, good], discard, stagger_s=0.01) == "good"
    assert ended == ["slow"] and discarded == ["late"]
    failures = await race([fails, fails], discard, stagger_s=0.01)
    assert isinstance(failures, list) and all(isinstance(one, SwarmError) for one in failures) and len(failures) == 2


async def test_a_race_that_is_cancelled_leaves_nothing_running() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return ""

    async def discard(late: str) -> None:
        raise AssertionError(late)

    racing = asyncio.create_task(race([slow], discard))
    await started.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert ended.is_set()


async def test_a_handler_knows_where_its_caller_is() -> None:
    seen: list[str] = []

    async def hello(request: bytes, call: Call) -> bytes:
        seen.append(call.address)
        return request

    certificate, pool = tls.make(SERVER), ChannelPool(CALLER)
    server = RpcServer(SERVER, certificate, {services.HELLO.name: hello})
    try:
        channel = await pool.channel(SERVER.peer_id, (f"127.0.0.1:{await server.start()}",), certificate.der)
        await channel.unary(services.HELLO, b"x")
    finally:
        await pool.close()
        await server.stop()
    assert seen == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.1.2.3:5000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2::7%5D:5000", "2001:db8:1:2::7"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:5000", "10.1.2.3"),
        ("unix:/tmp/socket", ""),
        ("nonsense", ""),
    ],
)
def test_an_address_is_read_from_what_grpc_says(peer: str, host: str) -> None:
    assert remote_of(peer)[0] == host
