"""A toy replica behind a real server, in its own process.

python -m tests.swarm.averaging.processes.replica_process SEED; prints its port and certificate, and ends with stdin. It dies where a file
in the folder SWARM_FAULTS says (`swarm/faults.py`); while there is a file `hold`, it does not hear how a group ended from its leader.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from protocols import services
from protocols.identity import from_seed
from protocols.services import Method
from swarm.averaging import scratch
from swarm.averaging.averager import Averager
from swarm.rpc import Call, ChannelPool, RpcServer, tls
from tests.swarm.averaging.toy import ToyReplica, bits

ADD, STATE = Method(name="toy_add"), Method(name="toy_state")


def methods() -> tuple[Method, ...]:
    return (*services.ALL, ADD, STATE)


async def serve(seed: int) -> None:
    torch.set_num_threads(1)
    scratch.PIECE = 500  # several pieces of each slice, so that a process can die between two
    identity, replica = from_seed(bytes([seed]) * 32), ToyReplica()
    averager = Averager(identity, ChannelPool(identity), lambda run: replica)

    async def add(request: bytes, call: Call) -> bytes:
        version, index = json.loads(request)
        return json.dumps(replica.add(index, version=version)).encode()

    async def state(request: bytes, call: Call) -> bytes:
        chains = {str(unit): chain.hex() for unit, chain in replica.chains.items()}
        return json.dumps([replica.version, bits(replica.parameters), replica.num_steps, chains]).encode()

    handlers: dict[str, Any] = {**averager.handlers(), "toy_add": add, "toy_state": state}
    decide = handlers["decide"]

    async def held(request: bytes, call: Call) -> bytes:
        if (Path(os.environ["SWARM_FAULTS"]) / "hold").exists():
            await asyncio.Event().wait()
        return await decide(request, call)  # type: ignore[no-any-return]

    certificate = tls.make(identity)
    server = RpcServer(identity, certificate, handlers | {"decide": held}, methods=methods())
    print(await server.start(), certificate.der.hex(), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    asyncio.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
