"""Downloads of 120 MB: a liar, a death, a resumed receiver."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from protocols.weights import PIECE_BYTES
from swarm.weights.cache import ModelCache
from tests.swarm.weights.parts import Liar, LocalSwarm, Paused, local_swarm, make_model

ROOT = Path(__file__).resolve().parents[4]


async def receiver(request: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.swarm.weights.receiver",
        str(request),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )


async def next_line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, f"the receiver ended with {await process.wait()}"
    return dict(json.loads(line))


async def test_four_sources_a_liar_and_two_deaths_cost_less_than_five_percent(tmp_path: Path) -> None:
    async with asyncio.timeout(120), local_swarm() as here:
        model = make_model(tmp_path / "source", block_bytes=29 * PIECE_BYTES + 99, end_bytes=4 * PIECE_BYTES)
        assert model.num_bytes > 120e6
        liar, doomed = Liar(), Paused(6)
        liar.honest = 4
        for uploader in (liar, doomed, None, None):
            await here.start(model, uploader)
        request = tmp_path / "request.json"
        (tmp_path / "manifest").write_bytes(model.manifest.canonical())
        request.write_text(json.dumps(facts(here, tmp_path)))

        first = await receiver(request)
        line: dict[str, Any] = {"done": 0}
        while line["done"] < model.num_bytes / 2:
            line = await next_line(first)
        first.send_signal(signal.SIGKILL)
        await first.wait()

        second = await receiver(request)
        resumed = await next_line(second)
        assert resumed["resumed"] >= line["done"], "what was proven before the kill is not fetched again"
        await here.givers[1].server.stop()
        report = resumed
        while "seconds" not in report:
            report = await next_line(second)
        await second.wait()

        model.check(ModelCache(tmp_path / "weights", model.model, model.manifest))
        fetched = line["fetched"] + report["fetched"]
        share = fetched / model.num_bytes
        print(f"{model.num_bytes} bytes, fetched {share:.4f} of that; the part after the kill in {report['seconds']:.1f} s")
        assert fetched <= 1.05 * model.num_bytes
        assert report["fetched"] <= 1.05 * (model.num_bytes - report["resumed"]) + 4 * PIECE_BYTES
        assert not [
            name for name in os.listdir(tmp_path / "weights" / model.model.digest) if name.endswith((".part", ".journal"))
        ]
        assert list(report["liars"]) == [here.givers[0].record.peer]


def facts(here: LocalSwarm, tmp_path: Path) -> dict[str, Any]:
    sources = [[giver.record.peer, giver.record.addresses[0]] for giver in here.givers]
    return {"root": str(tmp_path / "weights"), "manifest": str(tmp_path / "manifest"), "name": "tiny", "sources": sources}
