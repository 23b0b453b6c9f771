"""A swarm and one process train one model: losses side by side.

The model and the text of examples/prose. For each optimizer and seed: `swarm train --local`, and a swarm of two stages with two replicas
each, and two trainers. Printed: the largest relative difference of a loss in the first 20 steps, and the losses on the held-out text at
the end.

Run: scripts/same_learning [--steps 500] [--seeds 3] [--batch-tokens 512] [--optimizers adamw muon]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.run_files import write_prose_run
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.training_swarm import TrainingSwarm
from tests.forked import ForkServer

NUM_FIRST, FIRST_DIFFERENCE, LAST_DIFFERENCE = 20, 1e-4, 0.01
LIMIT_S = 3600.0
RUN = {
    "name": "tiny",
    "training.micro_batch_sequences": 1,
    "evaluation.samples": [],
    "checkpoint.every_steps": 0,
    "serving.every_versions": 0,
}
"""What is not as in the example."""
RATES = {"adamw": 1e-3, "muon": 1e-3}


def losses_of(swarm: TrainingSwarm) -> tuple[dict[int, float], float]:
    """Training loss by version, and the last validation loss."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (swarm.folder / "metrics.jsonl").read_text().splitlines()]
    return {row["version"]: row["loss"] for row in rows if row.get("loss") is not None and "version" in row}, next(
        row["loss"] for row in reversed(rows) if "evaluation" in row
    )


def in_one_process(folder: Path, server: ForkServer, run_file: Path) -> tuple[dict[int, float], float]:
    with ProcessPool(folder, server) as pool:
        swarm = TrainingSwarm(pool, run_file)
        assert swarm.trainer("local", "--local").has_ended(LIMIT_S)
        return losses_of(swarm)


def in_a_swarm(folder: Path, server: ForkServer, run_file: Path) -> tuple[dict[int, float], float]:
    with ProcessPool(folder, server) as pool:
        swarm = TrainingSwarm(pool, run_file)
        for number, blocks in enumerate(("0:3", "3:6") * 2):
            swarm.node(f"stage{number}", blocks).wait_for("ready")
        trainer, _ = swarm.trainer("first"), swarm.trainer("second", "--out", str(folder / "second"))
        assert trainer.has_ended(LIMIT_S)
        rows = losses_of(swarm)
        if len(rows[0]) < 2:
            raise AssertionError(trainer.last_words())
        return rows


def compare(options: argparse.Namespace, optimizer: str, seed: int, server: ForkServer) -> dict[str, Any]:
    """One seed in both ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = write_prose_run(
            folder / "run",
            {
                **RUN, "seed": seed, "training.steps": options.steps, "training.batch_tokens": options.batch_tokens,
                "optimizer.name": optimizer, "optimizer.lr": RATES[optimizer], "evaluation.every_steps": options.steps,
            },
        )  # fmt: skip
        ways = {}
        for way in (in_one_process, in_a_swarm):
            (folder / way.__name__).mkdir()
            ways[way] = way(folder / way.__name__, server, run_file)
    (one, one_last), (swarm, swarm_last) = ways.values()
    first = [abs(swarm[version] / one[version] - 1) for version in range(1, NUM_FIRST + 1) if version in swarm]
    return {
        "optimizer": optimizer, "seed": seed, "steps": max(swarm), "largest difference, first 20 steps": max(first),
        "held-out loss, one process": one_last, "held-out loss, swarm": swarm_last, "difference": swarm_last / one_last - 1,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES))
    options = parser.parse_args()
    is_met = True
    with ForkServer() as server:
        for optimizer in options.optimizers:
            found = []
            for seed in range(options.seeds):
                found.append(compare(options, optimizer, seed, server))
                print(json.dumps(found[-1]), flush=True)
            one, swarm = (statistics.mean(row[f"held-out loss, {way}"] for row in found) for way in ("one process", "swarm"))
            print(
                json.dumps(
                    {"optimizer": optimizer, "mean, one process": one, "mean, swarm": swarm, "difference": swarm / one - 1}
                )
            )
            is_first = all(row["largest difference, first 20 steps"] <= FIRST_DIFFERENCE for row in found)
            is_met = is_met and is_first and abs(swarm / one - 1) <= LAST_DIFFERENCE
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
