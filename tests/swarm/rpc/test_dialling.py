"""Dials end when no caller waits, and leave nothing behind.

An address that one caller names for a peer is not used for another caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from protocols.errors import PeerUnreachableError
from swarm.rpc.pool import ChannelPool
from tests.swarm.inference.toy import until
from tests.swarm.rpc.parts import CALLER, ECHO, SERVER, STRANGER, running


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def num_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


@pytest.mark.parametrize("certificate", [True, False])
async def test_a_dial_that_nobody_waits_for_ends_and_its_channel_is_forgotten(silent: str, certificate: bool) -> None:
    async with running() as there:
        assert await (await there.channel()).unary(ECHO, b"!")
        pool, before = ChannelPool(CALLER), num_sockets()
        der = there.certificate.der if certificate else b""
        waiting = [asyncio.create_task(pool.channel(SERVER.peer_id, (silent,), der)) for _ in range(3)]
        await until(lambda: num_sockets() > before)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert num_sockets() > before and pool._channels  # the others wait still
        for task in waiting[1:]:
            task.cancel()
        await asyncio.wait(waiting)
        assert not pool._channels
        await until(lambda: num_sockets() <= before)
        await pool.close()


async def test_a_storm_of_given_up_dials_leaves_nothing(silent: str) -> None:
    async with running() as there:
        assert await (await there.channel()).unary(ECHO, b"!")
        pool, before = ChannelPool(CALLER), num_sockets()
        for _ in range(50):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005):
                    await pool.channel(STRANGER.peer_id, (silent,) * 8)
        assert not pool._channels
        await until(lambda: num_sockets() <= before)
        await pool.close()


async def test_a_stranger_s_word_about_a_peer_neither_delays_nor_fails_others(silent: str) -> None:
    """A route names a peer's addresses: a caller with a wrong route must not share its dial with callers of better ones."""
    async with running() as there:
        pool = ChannelPool(CALLER)
        lured = asyncio.create_task(pool.channel(SERVER.peer_id, (silent,), there.certificate.der))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(60):
            channel = await pool.channel(SERVER.peer_id, (there.address,), there.certificate.der)
            assert await channel.unary(ECHO, b"!")
        await pool.channel(SERVER.peer_id, (silent,), there.certificate.der)  # warm: nothing is dialled
        await channel._drop()
        assert await channel.unary(ECHO, b"!")  # and where it is dialled anew is where it answered last
        lured.cancel()
        await asyncio.wait((lured,))
        await pool.close()


async def test_a_dial_that_fails_leaves_no_channel() -> None:
    pool = ChannelPool(CALLER)
    with pytest.raises(PeerUnreachableError):
        await pool.channel(SERVER.peer_id, ("127.0.0.1:1",))
    assert not pool._channels
    await pool.close()
