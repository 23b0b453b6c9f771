"""Download of a unit's state: digest and checks included.

The source is a process of its own on this machine; both talk over TLS. The bound of the issue is 200 MB/s.

Run alone: python scripts/benchmarks/state.py [MEGABYTES]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import aclosing
from typing import Any

from protocols.identity import Identity, from_seed
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.units import Blocks, Unit

MEGABYTES = 120
RUN = ModelId("bench", "ab" * 32)
UNIT = Blocks(0, 1)
SOURCE: Identity = from_seed(bytes([7]) * 32)


def snapshot(megabytes: int) -> Any:
    """Parameters and two moments of equal size."""
    import torch

    from swarm.training.snapshot import UnitSnapshot

    values = torch.randn(megabytes * 1_000_000 // 12, generator=torch.Generator().manual_seed(0))
    tensors = {f"{kind}/weight": values for kind in ("parameter", "mean", "square")}
    return UnitSnapshot.of(unit=UNIT, version=1, chain=bytes(32), tensors=tensors)


async def serve(megabytes: int) -> None:
    """Print where this source is, and give state until stdin ends. Every request takes a new copy, which is hashed anew."""
    from swarm.rpc import RpcServer, tls
    from swarm.training.snapshot import UnitSnapshot
    from swarm.training.state_server import StateServer

    own = snapshot(megabytes)

    async def take(unit: Unit, version: int | None) -> UnitSnapshot:
        return UnitSnapshot.of(unit=unit, version=1, chain=bytes(32), tensors=own.tensors)

    server, certificate = StateServer(), tls.make(SOURCE)
    server.add(RUN, take)
    rpc = RpcServer(SOURCE, certificate, server.handlers())
    port = await rpc.start()
    print(json.dumps({"port": port, "certificate": certificate.der.hex()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await rpc.stop()


async def fetch(record: PeerRecord, own: Any, repeats: int) -> list[float]:
    """Seconds of each download, after one that is not counted."""
    from swarm.rpc import ChannelPool
    from swarm.training.state_download import Wanted, download, same_form

    pool = ChannelPool(from_seed(bytes([8]) * 32))
    wanted = Wanted(unit=UNIT, version=1, chain=bytes(32), check=same_form(own.form), sources=(record,))
    times_s = []
    for _ in range(repeats + 1):
        started_s = time.perf_counter()
        async with aclosing(download(pool, RUN, [wanted])) as found:
            async for one in found:
                assert one.digest == own.digest
        times_s.append(time.perf_counter() - started_s)
    await pool.close()
    return times_s[1:]


def measure(repeats: int, megabytes: int = MEGABYTES) -> dict[str, Any]:
    """Section `state`: megabytes a second."""
    from benchmarks.timing import spread

    own = snapshot(megabytes)
    own.digest  # noqa: B018  # hashed here, so that the comparison costs nothing
    command = [sys.executable, __file__, "--serve", str(megabytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            told = json.loads(child.stdout.readline())
            place = (f"127.0.0.1:{told['port']}",)
            record = PeerRecord(peer=SOURCE.peer_id, addresses=place, certificate=bytes.fromhex(told["certificate"]))
            times_s = asyncio.run(fetch(record, own, repeats))
        finally:
            child.stdin.close()
            child.wait(30)
    rates = [own.form.num_bytes / 1e6 / time_s for time_s in times_s]
    return {"megabytes": round(own.form.num_bytes / 1e6, 1), "mb_s": spread(rates, 0, largest=True)}


if __name__ == "__main__":
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if "--serve" in sys.argv:
        asyncio.run(serve(int(sys.argv[-1])))
    else:
        print(json.dumps(measure(9, int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES)))
