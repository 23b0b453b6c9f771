"""Dialling back scans no ports, and stays available to others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from protocols.errors import OverloadedError, SwarmError, UnauthenticatedError
from protocols.hello import DialBack, DialBackReply
from protocols.identity import Identity, from_seed
from protocols.ids import PeerId
from protocols.services import DIAL_BACK
from swarm.meeting.dial_back import MAX_ADDRESSES, MAX_PER_NETWORK, DialBacks
from swarm.meeting.reachability import Place, ask
from swarm.rpc import Call, ChannelPool, RpcServer, tls

HONEST, SERVER = from_seed(bytes([90]) * 32), from_seed(bytes([91]) * 32)


def identity(number: int) -> Identity:
    return from_seed(number.to_bytes(32))


class Listener:
    """A TCP port that says nothing and counts who comes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_server((host, 0), backlog=64)
        self._socket.setblocking(False)
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self.accepted: list[socket.socket] = []

    def num_visits(self) -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.accepted.append(self._socket.accept()[0])
        return len(self.accepted)

    def close(self) -> None:
        for one in (*self.accepted, self._socket):
            one.close()


@contextlib.contextmanager
def listeners(count: int) -> Iterator[list[Listener]]:
    found = [Listener() for _ in range(count)]
    try:
        yield found
    finally:
        for one in found:
            one.close()


def ignored(peer: PeerId, address: str) -> None:
    pass


def nobody(peer: PeerId, address: str) -> None:
    raise AssertionError(f"{peer} at {address} counts as reached")


def dialling(on_reached: Callable[[PeerId, str], None], wait_s: float = 60.0) -> DialBacks:
    """wait_s: a failure is told after it, so it is short where one is expected."""
    return DialBacks(on_reached, wait_s)


@contextlib.asynccontextmanager
async def served(
    who: Identity, answer: Callable[[bytes, Call], Awaitable[bytes]] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Place]:
    """A real gRPC server that answers `dial_back`."""
    certificate = tls.make(who)
    server = RpcServer(who, certificate, {DIAL_BACK.name: answer or dialling(ignored).answer}, host)
    port = await server.start()
    try:
        yield who.peer_id, (f"{host}:{port}",), certificate.der
    finally:
        await server.stop()


def request(*addresses: str) -> bytes:
    return DialBack(addresses=addresses).encode()


def call(who: Identity, address: str) -> Call:
    return Call(who.peer_id, lambda: 10.0, address)


async def test_a_call_makes_two_dials_and_none_at_others() -> None:
    """176 bytes used to make 8 dials, wherever the caller wanted."""
    pool = ChannelPool(identity(1))
    with listeners(8) as ports:
        async with served(SERVER, dialling(ignored, 0.6).answer) as (peer, addresses, certificate):
            channel = await pool.channel(peer, addresses, certificate)
            reply = await channel.unary(DIAL_BACK, request(*(port.address for port in ports)))
            assert DialBackReply.parse(reply).reachable == ()
            assert sum(port.num_visits() for port in ports) == MAX_ADDRESSES
            for address in (
                "203.0.113.9",
                "10.0.0.7",
                "2606:4700::1",
                "",
            ):  # as callers from there: a port of ours is not theirs
                with pytest.raises(UnauthenticatedError, match="only the address that a call comes from"):
                    await dialling(nobody).answer(request(ports[7].address, "1.1.1.1:1"), call(identity(2), address))
            assert sum(port.num_visits() for port in ports) == MAX_ADDRESSES
    await pool.close()


async def test_a_closed_a_silent_and_another_peers_port_take_the_same_time() -> None:
    with listeners(2) as (silent, closed):
        closed.close()
        async with served(SERVER) as (_, (other,), _):
            took_s = {}
            for address in (silent.address, closed.address, other):
                began_s = time.monotonic()
                answered = await dialling(nobody, 0.6).answer(request(address), call(identity(3), "127.0.0.1"))
                took_s[address] = time.monotonic() - began_s
                said = DialBackReply.parse(answered)
                assert said.reachable == () and said.reason == f"no peer proves your identity at {address}"
    assert min(took_s.values()) >= 0.59, took_s


async def test_many_identities_of_one_network_keep_nobody_else_from_being_dialled() -> None:
    """8 identities at one address used to hold all places, for as long as they liked."""
    reached: list[tuple[PeerId, str]] = []
    dial_backs = dialling(lambda peer, address: reached.append((peer, address)))
    with listeners(1) as (silent,):
        attackers = [
            asyncio.create_task(dial_backs.answer(request(silent.address), call(identity(number), "127.0.0.1")))
            for number in range(10, 50)
        ]
        await asyncio.sleep(0)
        async with served(HONEST, host="127.0.5.1") as (_, (mine,), _):
            reply = DialBackReply.parse(await dial_backs.answer(request(mine), call(HONEST, "127.0.5.1")))
            assert reply.reachable == (mine,) and reply.reason == "" and reached == [(HONEST.peer_id, mine)]
            assert not any(attacker.done() for attacker in attackers[:MAX_PER_NETWORK])  # a success is told at once
        assert silent.num_visits() <= MAX_PER_NETWORK
        for attacker in attackers[:MAX_PER_NETWORK]:
            attacker.cancel()
        results = await asyncio.gather(*attackers, return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert len(refused) == len(attackers) - MAX_PER_NETWORK
    async with served(HONEST) as (_, (mine,), _):  # all places were given back
        again = await dial_backs.answer(request(mine), call(HONEST, "127.0.0.1"))
        assert DialBackReply.parse(again).reachable == (mine,)


async def test_peers_that_refuse_are_passed_over_and_a_name_is_resolved_by_who_has_it() -> None:
    async def refuse(_request: bytes, _call: Call) -> bytes:
        raise OverloadedError("busy")

    async def lie(_request: bytes, _call: Call) -> bytes:
        return DialBackReply(reachable=(), reason="I say so").encode()

    pool = ChannelPool(HONEST)
    async with contextlib.AsyncExitStack() as stack:
        refusing = [await stack.enter_async_context(served(identity(60 + number), refuse)) for number in range(3)]
        lying = [await stack.enter_async_context(served(identity(70 + number), lie)) for number in range(3)]
        honest = await stack.enter_async_context(served(SERVER))
        _, (mine,), certificate = await stack.enter_async_context(served(HONEST))
        named = mine.replace("127.0.0.1", "localhost")
        assert await ask(pool, [*refusing, *lying[:2], honest], (named,), certificate) is True
        assert await ask(pool, refusing, (named,), certificate) is None  # no peer has tried
        assert await ask(pool, [*lying, honest], (named,), certificate) is False  # three agree: enough
        with contextlib.suppress(SwarmError):
            await pool.close()
