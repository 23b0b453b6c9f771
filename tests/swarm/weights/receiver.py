"""A process that fetches all tensors of a model.

Run as `python -m tests.swarm.weights.receiver REQUEST.json`, so that a test can kill it.

The request: {"root", "manifest" (file), "name", "sources": [[peer, address], …]}. stdout: a JSON line for each progress, and the report.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from protocols.ids import ModelId, PeerId
from protocols.records import PeerRecord
from protocols.weights import Manifest
from swarm.rpc import ChannelPool
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_tensors
from swarm.weights.terms import Options, Progress
from tests.swarm.weights.parts import ME


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def main(request: dict[str, Any], manifest: Manifest) -> None:
    cache = ModelCache(Path(request["root"]), ModelId(request["name"], manifest.digest), manifest)
    records = [PeerRecord(peer=PeerId(peer), addresses=(address,)) for peer, address in request["sources"]]
    pool = ChannelPool(ME)

    async def sources() -> list[PeerRecord]:
        return records

    def tell(progress: Progress) -> None:
        say(done=progress.done_bytes, fetched=progress.fetched_bytes, resumed=progress.resumed_bytes)

    names = [entry.name for entry in manifest.entries]
    report = await fetch_tensors(names, cache, pool, sources, Options(on_progress=tell))
    await pool.close()
    say(
        total=report.total_bytes, fetched=report.fetched_bytes, resumed=report.resumed_bytes, seconds=report.seconds,
        liars=report.liars, from_peer=report.from_peer,
    )  # fmt: skip


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(main(asked, Manifest.from_canonical(Path(asked["manifest"]).read_bytes())))
