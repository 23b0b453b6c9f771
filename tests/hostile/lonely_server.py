"""A server in a process of its own, with few descriptors.

So its memory and its sockets can be counted.

python -m tests.hostile.lonely_server MAX_DESCRIPTORS PATIENCE_S; prints its port, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import resource
import sys

from protocols.identity import from_seed
from swarm.rpc import Call, RpcServer, Stream, connections, server, tls

IDENTITY = from_seed(b"L" * 32)


async def hello(request: bytes, call: Call) -> bytes:
    return b"hello, " + call.peer.encode()


async def session(stream: Stream, call: Call) -> None:
    """Waits for a first frame, for as long as it takes, and sends back how long it was."""
    frame = await stream.receive()
    await stream.send(str(len(frame or b"")).encode())
    await stream.receive()


async def main() -> None:
    certificate = tls.make(IDENTITY)
    running = RpcServer(IDENTITY, certificate, {"hello": hello, "session": session})
    print(await running.start(), certificate.der.hex(), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    limit = int(sys.argv[1])
    server.FIRST_MESSAGE_S = connections.UNKNOWN_S = float(sys.argv[2])  # so that a test need not wait for 10 s
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asyncio.run(main())
