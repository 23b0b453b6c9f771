"""A killed client process leaves nothing at the nodes."""

from __future__ import annotations

import asyncio

from swarm.inference.hop.hops import HopLimits
from tests.forked import ForkServer
from tests.swarm.inference.toy import ToySwarm, until


async def test_a_client_that_is_killed_frees_memory_after_resume_s(swarm: ToySwarm, fork_server: ForkServer) -> None:
    """A process of its own, and `kill -9`: no word, no end of a stream, only connections that the system breaks."""
    limits = HopLimits(resume_s=0.5)
    nodes = [await swarm.serve(0, 2, limits=limits), await swarm.serve(2, 4, limits=limits)]
    hops = [[node.address, node.identity.peer_id, node.certificate.der.hex(), str(node.span)] for node in nodes]
    code = "import asyncio, sys\nfrom tests.swarm.inference.vanishing import main\nasyncio.run(main(sys.argv[1:]))"
    client = await asyncio.to_thread(fork_server.popen, [code, *(part for hop in hops for part in hop)], kind="code")
    try:
        assert client.stdout is not None
        assert await asyncio.wait_for(asyncio.to_thread(client.stdout.readline), 120) == "ready\n"
        assert [node.engine.used_bytes for node in nodes] == [5, 5]
    finally:
        client.kill()
        await asyncio.to_thread(client.wait, 60)
    await until(lambda: not any(node.engine.used_bytes or node.host.num_sessions for node in nodes))
