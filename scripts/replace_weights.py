"""Sessions while the weights change: no answer may mix two versions.

Four nodes in this process (`tests/node/hosting/versions.py`): two replicas of each half of a tiny llama. One has memory for one version
only, so its sessions go on at its replica. Every answer is compared with a single machine's, for each version.

Run: scripts/replace_weights [--sessions 100] [--at-once 8] [--tokens 16] [--every 1.0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocols.ids import Span
from tests.families import make_checkpoint
from tests.node.hosting.versions import Answer, Model, Swarm, judge, swarm_of


async def change(swarm: Swarm, every_s: float, numbers: list[int]) -> None:
    """The next version at one node after the other, and again `every_s` after the last beginning."""
    while True:
        began_s = time.monotonic()
        numbers.append(len(numbers))
        for node in swarm.nodes:
            await node.replace(numbers[-1])
        await asyncio.sleep(max(0.0, began_s + every_s - time.monotonic()))


async def run(options: argparse.Namespace, model: Model) -> dict[str, object]:
    draw, places, numbers = random.Random(options.seed), asyncio.Semaphore(options.at_once), [0]

    async def asked(swarm: Swarm) -> Answer:
        prompt = [draw.randrange(64) for _ in range(draw.randrange(3, 9))]
        async with places:
            answer = await swarm.ask(prompt, options.tokens, pause_s=0.02)
        print(
            f"version {answer.number}: {answer.num_replaced} hops replaced; {swarm.num_lost} sessions begun anew so far",
            file=sys.stderr,
        )
        return answer

    async with swarm_of(model) as swarm:
        for span, free_bytes in ((Span(0, 2), 0), (Span(2, 5), 1 << 40), (Span(0, 2), 1 << 40), (Span(2, 5), 1 << 40)):
            await swarm.add(span, free_bytes)
        began_s = time.monotonic()
        changing = asyncio.create_task(change(swarm, options.every, numbers))
        answers = await asyncio.gather(*(asked(swarm) for _ in range(options.sessions)))
        spent_s = time.monotonic() - began_s
        changing.cancel()
        await asyncio.wait([changing])
        if not changing.cancelled():
            changing.result()
    verdict = judge(model, answers, numbers[-1])
    return {
        "seed": options.seed, "answers": verdict.num_answers, "mixed": len(verdict.mixed), "answers of two versions": verdict.shared,
        "versions": numbers[-1], "versions that answered": len(verdict.by_version), "hops replaced": verdict.num_replaced,
        "sessions begun anew": swarm.num_lost, "seconds": round(spent_s, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one change to the next")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(parser.parse_args(), Model(make_checkpoint("llama", Path(folder)))))
    print(json.dumps(result))
    return 1 if result["mixed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
