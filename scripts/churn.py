"""A run under churn: stages and trainers die and join.

First an undisturbed run of the same swarm: 8 stages in two pipelines, two trainers. Then the same run, but every --every-s seconds a
stage is killed (-9) and another one started. A trainer is killed after a third of the time, and another one starts at its half. If a
version lost a micro-batch, or counted one twice, its loss would be another one than that of the undisturbed run.

Run: scripts/churn [--minutes 5] [--every-s 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.run_files import write_run
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.end_to_end.training_swarm import TrainingSwarm
from tests.forked import ForkServer

SPANS = ("0:2", "2:4", "4:6", "6:8")
RUN = {
    "data.sequence_tokens": 64, "training.steps": 100_000, "training.batch_tokens": 4096, "optimizer.lr": 1e-3,
    "averaging.deadline_s": 5, "evaluation.every_steps": 0, "checkpoint.every_steps": 20,
}  # fmt: skip
MODEL = {"num_hidden_layers": 8, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
MICRO_BATCHES = 16
LONGEST_STALL_S, LEAST_GOODPUT, LARGEST_DIFFERENCE = 15.0, 0.85, 0.02


@dataclass
class Watch:
    """The versions of a run as its trainers write them down."""

    swarm: TrainingSwarm
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    arrived_s: dict[int, float] = field(default_factory=dict)
    ended_s: float = 0.0
    _read: dict[Path, int] = field(default_factory=dict)

    def until(self, ends_s: float, is_there: Callable[[], bool] = lambda: False) -> None:
        """Read on until then, or until something is there."""
        while time.monotonic() < ends_s and not is_there():
            for path in self.swarm.pool.folder.glob("out-*/tiny/metrics.jsonl"):
                data = path.read_bytes()
                whole = data.rfind(b"\n") + 1
                for line in data[self._read.get(path, 0) : whole].splitlines():
                    row = json.loads(line)
                    if row.get("loss") is not None and row["version"] not in self.rows:
                        self.rows[row["version"]], self.arrived_s[row["version"]] = row, time.monotonic()
                self._read[path] = whole
            time.sleep(0.1)
        self.ended_s = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """The time since the last version counts as a stall, too."""
        times = [self.arrived_s[version] for version in sorted(self.arrived_s)] + [self.ended_s]
        gaps = [after - before for before, after in pairwise(times)]
        done, redone = len(self.rows) * MICRO_BATCHES, sum(row["redone"] for row in self.rows.values())
        return {
            "versions": len(self.rows), "version s, median": round(statistics.median(gaps), 2), "longest stall s": round(max(gaps), 2),
            "redone": redone, "goodput": round(done / (done + redone), 3),
        }  # fmt: skip


class Churn:
    """Starts and kills the processes of one run."""

    def __init__(self, pool: ProcessPool, run_file: Path, seed: int) -> None:
        self._swarm, self._rng, self._number = TrainingSwarm(pool=pool, run_file=run_file), random.Random(seed), 0
        self.watch = Watch(self._swarm)
        self._stages: list[tuple[NodeProcess, str]] = []
        self._trainers: list[NodeProcess] = []
        self.num_killed = self.num_joined = 0

    def begin(self) -> None:
        """All stages are ready, and two trainers have stepped a version."""
        for blocks in SPANS * 2:
            self._join(blocks).wait_for("ready")
        for _ in range(2):
            self._train()
        self.watch.until(time.monotonic() + 60, lambda: bool(self.watch.rows))
        assert self.watch.rows, "no version came in 60 s"

    def disturb(self, minutes: float, every_s: float) -> None:
        """Kill and start for so long."""
        began_s, length_s = time.monotonic(), 60 * minutes
        next_s, has_killed, has_started = began_s + every_s, False, False
        while (now_s := time.monotonic()) < began_s + length_s:
            if now_s >= next_s:
                next_s += every_s
                self._replace_a_stage()
            if not has_killed and now_s >= began_s + length_s / 3:
                has_killed = True
                self._swarm.kill(self._trainers.pop(0))
            if not has_started and now_s >= began_s + length_s / 2:
                has_started = True
                self._train()
            self.watch.until(min(next_s, now_s + 1))

    def end(self) -> None:
        self._swarm.kill_all()

    def _replace_a_stage(self) -> None:
        doomed, blocks = self._stages.pop(self._rng.randrange(len(self._stages)))
        self._swarm.kill(doomed)
        self._join(blocks)
        self.num_killed, self.num_joined = self.num_killed + 1, self.num_joined + 1

    def _join(self, blocks: str) -> NodeProcess:
        self._number += 1
        stage = self._swarm.node(f"stage{self._number}", blocks)
        self._stages.append((stage, blocks))
        return stage

    def _train(self) -> None:
        self._number += 1
        out = self._swarm.pool.folder / f"out-{self._number}"
        self._trainers.append(self._swarm.trainer(f"trainer{self._number}", "--out", str(out)))


def measured(
    folder: Path, server: ForkServer, options: argparse.Namespace, *, is_disturbed: bool
) -> tuple[Churn, dict[str, Any]]:
    """One run, and what it came to."""
    folder.mkdir()
    with ProcessPool(folder, server) as pool:
        churn = Churn(pool, write_run(folder / "run", RUN, config=MODEL, texts=list(topics.values())), options.seed)
        churn.begin()
        if is_disturbed:
            churn.disturb(options.minutes, options.every_s)
        else:
            churn.watch.until(time.monotonic() + 60 * options.minutes)
        churn.end()
        return churn, churn.watch.summary()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each of the two runs")
    parser.add_argument("--every-s", type=float, default=20.0, help="seconds between two deaths")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ForkServer() as server:
        calm, undisturbed = measured(Path(folder) / "calm", server, options, is_disturbed=False)
        print(json.dumps({"undisturbed": undisturbed}), flush=True)
        churn, disturbed = measured(Path(folder) / "churn", server, options, is_disturbed=True)
    common = sorted(calm.watch.rows.keys() & churn.watch.rows.keys())
    differences = [abs(churn.watch.rows[v]["loss"] / calm.watch.rows[v]["loss"] - 1) for v in common]
    result = {
        **disturbed, "killed": churn.num_killed, "joined": churn.num_joined,
        "speed of undisturbed": round(disturbed["versions"] / undisturbed["versions"], 2), "versions compared": len(common),
        "first version that differs by more than": {
            f"{limit:g}": next((v for v, found in zip(common, differences, strict=True) if found > limit), None)
            for limit in (1e-6, 1e-4, 1e-2)
        },
        "largest difference of a loss": max(differences), "difference of the last": differences[-1],
    }  # fmt: skip
    print(json.dumps({"churn": result}))
    is_met = disturbed["longest stall s"] <= LONGEST_STALL_S and disturbed["goodput"] >= LEAST_GOODPUT
    return 0 if is_met and differences[-1] <= LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
