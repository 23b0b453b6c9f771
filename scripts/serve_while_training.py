"""Prompts are answered while a run trains, and nodes die.

Four nodes, two replicas of each half of a tiny Llama, train and serve; clients ask without a pause; the node that gave the latest answer
is killed (-9), twice. Every answer is compared with Hugging Face's `generate` on the weights of the version that it names.

Run: scripts/serve_while_training [--versions 300] [--clients 2] [--tokens 8] [--batch-tokens 256]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.run_files import write_run
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.served_run import SERVE_EVERY, ServedRun, fields_of, judge
from tests.forked import ForkServer


def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    run_file = write_run(folder / "run", fields_of(options.versions, options.batch_tokens))
    first, second = options.deaths
    with ForkServer() as server, ProcessPool(folder, server) as pool:
        served = ServedRun(
            run_file=run_file, folder=folder, pool=pool, num_clients=options.clients, num_tokens=options.tokens,
            deaths={first: -1, second: 0}, limit_s=options.limit_s,
        )  # fmt: skip
        served.start("0:2", "2:4", "0:2", "2:4")
        began_s = time.monotonic()
        asyncio.run(served.train())
        spent_s = time.monotonic() - began_s
        print(f"{len(served.answers)} answers; comparing them", file=sys.stderr)
        verdict = judge(served)
    during, between = ([s for v, s in served.seconds.items() if v % SERVE_EVERY == odd] for odd in (1, 0))
    return {
        "versions": len(served.seconds), "seconds": round(spent_s, 1), "deaths": len(served.dead), "answers": verdict.num_answers,
        "failed": len(served.failures), "failures": served.failures[:5], "wrong": len(verdict.wrong), "mixed": len(verdict.mixed),
        "versions that answered": len(verdict.by_version), "hops replaced": verdict.num_replaced,
        "slowest answer s": round(verdict.slowest_s, 2),
        "answer s, median": round(statistics.median(answer.seconds for answer in served.answers), 3),
        "step s, median, while a version is published": round(statistics.median(during), 3),
        "step s, median, otherwise": round(statistics.median(between), 3), "longest step s": round(max(served.seconds.values()), 2),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=300)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--deaths", type=int, nargs=2, default=(100, 200), help="versions after which a node is killed")
    parser.add_argument("--limit-s", type=float, help="end the run after so many seconds, and compare what there is")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = run(parser.parse_args(), Path(folder))
    print(json.dumps(result))
    return 1 if result["failed"] or result["wrong"] or result["mixed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
