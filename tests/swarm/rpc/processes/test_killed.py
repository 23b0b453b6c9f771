"""A killed server process is noticed by its callers."""

from __future__ import annotations

import asyncio

from protocols.defaults import KEEPALIVE_S
from protocols.errors import PeerUnreachableError
from swarm.rpc.pool import ChannelPool
from tests.forked import ForkServer
from tests.swarm.rpc.parts import CALLER, ECHO, SERVER, TALK, error_of


async def test_a_killed_server_process_is_noticed_in_a_moment(fork_server: ForkServer) -> None:
    code = (
        "import asyncio, sys\n"
        "from tests.swarm.rpc.parts import running\n"
        "async def main():\n"
        "    async with running() as there:\n"
        "        print(there.address, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.to_thread(fork_server.popen, [code], kind="code")
    try:
        assert process.stdout
        address = (await asyncio.to_thread(process.stdout.readline)).strip()
        pool = ChannelPool(CALLER)
        channel = await pool.channel(SERVER.peer_id, (address,))
        stream = await channel.stream(TALK)
        waiting = asyncio.create_task(error_of(stream.receive(), PeerUnreachableError))
        process.kill()
        async with asyncio.timeout(KEEPALIVE_S):  # sooner than by a ping
            await waiting
        for again in (channel.stream(TALK), channel.unary(ECHO, b""), pool.channel(SERVER.peer_id, (address,))):
            await error_of(again, PeerUnreachableError)
        await pool.close()
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 60)
