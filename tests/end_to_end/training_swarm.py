"""Real processes that train a tiny model: nodes and trainers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.run_files import write_run
from tests.end_to_end.processes import NodeProcess, ProcessPool

STEPS, EVERY = 60, 5
"""EVERY: steps from one checkpoint to the next."""

FIELDS: dict[str, object] = {
    "training.steps": STEPS, "training.batch_tokens": 64, "training.micro_batch_sequences": 2, "optimizer.lr": 1e-3,
    "schedule.warmup_steps": 2, "evaluation.every_steps": 0, "checkpoint.every_steps": EVERY,
}  # fmt: skip


def write_short_run(folder: Path, **fields: object) -> Path:
    """A run file of a model with three blocks. fields: what is not as in FIELDS, with `__` for a dot."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return write_run(folder, {**FIELDS, **named}, config={"num_hidden_layers": 3})


@dataclass
class TrainingSwarm:
    """Starts processes of one run; each finds the others by those that are up."""

    pool: ProcessPool
    run_file: Path
    up: list[NodeProcess] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Metrics and checkpoints."""
        return self.pool.folder / "runs" / "tiny"

    def node(self, name: str, blocks: str, *more: str, network: int | None = None) -> NodeProcess:
        """`swarm node --run` with a data directory of its name; it is not awaited. network: as of `ProcessPool.start`."""
        return self._start(name, ["node", "--run", str(self.run_file), "--blocks", blocks, "--quiet", *more], network=network)

    def trainer(
        self, name: str, *more: str, environment: dict[str, str] | None = None, network: int | None = None
    ) -> NodeProcess:
        """`swarm train`; it is not awaited."""
        return self._start(name, ["train", str(self.run_file), "--out", str(self.folder.parent), *more], environment, network)

    def kill_all(self) -> None:
        """kill -9 of all processes at once."""
        for process in self.up:
            process.send_signal(9)  # type: ignore[arg-type]
        for process in self.up:
            assert process.has_ended(30.0)
        self.up.clear()

    def kill(self, process: NodeProcess) -> None:
        process.send_signal(9)  # type: ignore[arg-type]
        assert process.has_ended(30.0)
        self.up.remove(process)

    def losses(self) -> dict[int, float]:
        """By version, as the last trainer that stepped it has written."""
        rows: list[dict[str, Any]] = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {row["version"]: row["loss"] for row in rows if row.get("loss") is not None and "version" in row}

    def _start(
        self, name: str, arguments: list[str], environment: dict[str, str] | None = None, network: int | None = None
    ) -> NodeProcess:
        listen = "127.0.0.1:0" if network is None else "0.0.0.0:0"
        common = ["--no-lan", "--listen", listen, "--data-dir", str(self.pool.folder / f"data-{name}")]
        for other in self.up:
            common += ["--peer", other.wait_for("multiaddr")]
        process = self.pool.start(name, [*arguments, *common], environment, network)
        self.up.append(process)
        return process
