"""A run of 10 million parameters: two stages against one process.

Two nodes with one thread each and a trainer, against `swarm train --local` with two threads: the same run file, real processes, in turn:
the local one is stopped while the swarm trains, and the trainer ends while the local one runs (stages keep what they have). Time is that
between consecutive versions, so closing, metrics and everything between two steps count. Bytes of a hop are not measured here: the test of
`tests/node/training/test_pass_bytes.py` counts them, with TLS, at a proxy.

Run alone: python scripts/benchmarks/pipeline.py [REPEATS] [VERSIONS]
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

HIDDEN, BLOCKS, VOCABULARY, TOKENS = 320, 8, 1_024, 128
BATCH_TOKENS, SEQUENCES = 4_096, 2
FIELDS = {
    "name": "bench", "seed": 0, "data.sequence_tokens": TOKENS, "data.packing": True, "training.steps": 10_000,
    "training.batch_tokens": BATCH_TOKENS, "training.micro_batch_sequences": SEQUENCES, "optimizer.lr": 1e-4,
    "evaluation.every_steps": 0,
}  # fmt: skip
MODEL = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 864, "num_hidden_layers": BLOCKS, "num_attention_heads": 5,
    "num_key_value_heads": 5, "tie_word_embeddings": True,
}  # fmt: skip
ROUND_S = 120.0
"""How long one turn may take."""


def write(folder: Path) -> Path:
    """The run file, with its config, text and tokenizer."""
    from run_files import write_run

    return write_run(folder, FIELDS, config=MODEL, texts=list(topics.values()))


class Side:
    """One of the two, as seen in its metrics."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics

    def rows(self) -> list[dict[str, Any]]:
        """Of versions."""
        if not self._metrics.exists():
            return []
        from node.training import metrics

        return metrics.read(self._metrics.parent)[0]

    def wait(self, count: int, processes: Sequence[subprocess.Popen[bytes]]) -> list[dict[str, Any]]:
        """The next `count` lines of metrics, as soon as they are there."""
        from volunteers import VolunteerError

        before, until_s = len(self.rows()), time.monotonic() + ROUND_S
        while len(rows := self.rows()) < before + count:
            if time.monotonic() > until_s or any(process.poll() is not None for process in processes):
                raise VolunteerError(f"no {count} versions within {ROUND_S:.0f} s in {self._metrics}")
            time.sleep(0.02)
        return rows[before : before + count]


def turn(side: Side, processes: Sequence[subprocess.Popen[bytes]], versions: int) -> dict[str, Any]:
    """Tokens a second and processor seconds of `versions` versions, after one that is not counted."""
    from benchmarks.process_session import cpu_s

    first, leaders = side.wait(1, processes)[-1], [process.pid for process in processes]
    before_s = cpu_s(leaders)
    rows = side.wait(versions, processes)
    spent_s = cpu_s(leaders) - before_s
    return {
        "tokens_per_s": versions * BATCH_TOKENS / (rows[-1]["time_s"] - first["time_s"]),
        "cpu_ms_per_token": 1e3 * spent_s / versions / BATCH_TOKENS,
        "closing": sum(row["waiting_s"] for row in rows) / (rows[-1]["time_s"] - first["time_s"]),
    }


def start_stages(run_file: Path, place: Path, started: list[Any]) -> str:
    """Start two nodes, each with half of the blocks, and wait until they train. Returns the address of the first.

    started: gets each node as it starts, so that the caller can stop all.
    """
    from volunteers import start_node

    flags = ["--run", str(run_file), "--no-lan"]
    started.append(start_node("stage0", "0:4", flags, [], place))
    peer: str = started[0].wait_for("multiaddr")
    started.append(start_node("stage1", "4:8", flags, [peer], place))
    for node in started:
        node.wait_for("ready")
    return peer


def measure(folder: Path, repeats: int, versions: int = 3) -> dict[str, Any]:
    """Section `pipeline`."""
    from volunteers import start_process, stop

    from benchmarks.timing import spread

    place = folder / "pipeline"
    place.mkdir()
    run_file = write(place / "run")
    words = ["train", str(run_file), "--out", str(place / "runs")]
    started: list[Any] = []
    try:
        peer = start_stages(run_file, place, started)
        nodes = list(started)
        local = start_process("local", [*words, "--local", "--out", str(place / "alone"), "--data-dir", str(place / "data0")],
                              place, before=("env", "OMP_NUM_THREADS=2"))  # fmt: skip
        started.append(local)
        swarm_side, local_side = (
            Side(place / "runs" / "bench" / "metrics.jsonl"),
            Side(place / "alone" / "bench" / "metrics.jsonl"),
        )
        local_side.wait(1, [local.process])
        turns: dict[str, list[dict[str, Any]]] = {"swarm": [], "local": []}
        for repeat in range(repeats):
            local.process.send_signal(signal.SIGSTOP)
            trainer = start_process(f"trainer{repeat}", [*words, "--no-lan", "--peer", peer, "--listen", "127.0.0.1:0", "--data-dir",
                                    str(place / "data1")], place)  # fmt: skip
            started.append(trainer)
            turns["swarm"].append(turn(swarm_side, [*(node.process for node in nodes), trainer.process], versions))
            stop([trainer])
            started.remove(trainer)
            local.process.send_signal(signal.SIGCONT)
            turns["local"].append(turn(local_side, [local.process], versions))
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGCONT)
        stop(started)
    return _result(turns, spread)


def _result(turns: dict[str, list[dict[str, Any]]], spread: Any) -> dict[str, Any]:
    speeds = {name: [one["tokens_per_s"] for one in own] for name, own in turns.items()}
    costs = {name: [one["cpu_ms_per_token"] for one in own] for name, own in turns.items()}
    return {
        "swarm_tokens_per_s": spread(speeds["swarm"], 0, largest=True),
        "local_tokens_per_s": spread(speeds["local"], 0, largest=True),
        "swarm_cpu_ms_per_token": spread(costs["swarm"]),
        "local_cpu_ms_per_token": spread(costs["local"]),
        "closing_share": spread([one["closing"] for one in turns["swarm"]]),
        "of_local": spread([there / here for there, here in zip(speeds["swarm"], speeds["local"], strict=True)], 3, largest=True),
    }


if __name__ == "__main__":
    import sys
    import tempfile

    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    with tempfile.TemporaryDirectory(prefix="pipeline-") as made:
        print(
            json.dumps(
                measure(Path(made), int(sys.argv[1]) if len(sys.argv) > 1 else 3, int(sys.argv[2]) if len(sys.argv) > 2 else 3),
                indent=1,
            )
        )
