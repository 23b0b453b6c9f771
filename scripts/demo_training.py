"""Three nodes train a model; one dies, one joins, and they answer.

The demo's second act (`scripts/demo --train`). The text and the model are those of examples/prose. Nothing is staged: the nodes are
`swarm node --run` processes and `swarm train` is one more; the kill is `kill -9`; the answer is compared with what transformers alone says
of the checkpoint that the run has written.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from run_files import write_prose_run
from thin_answer import ask_thinly, report_thin
from volunteers import Node, VolunteerError, console, start_node, start_process

PROMPT = "A class definition is"
STEPS, TOKENS = 360, 1024
"""Versions, and tokens of each."""
EVERY = 30
"""Versions between two that are shown."""
LIMIT_S = 900.0
"""So long the training may take."""
CHANGES = {
    "training.steps": STEPS, "training.batch_tokens": TOKENS, "training.micro_batch_sequences": 2, "evaluation.every_steps": STEPS,
    "evaluation.samples": [], "checkpoint.every_steps": STEPS,
}  # fmt: skip
"""Fields of the example's run file that are others here, so that it takes minutes on two cores."""


@dataclass(kw_only=True)
class Run:
    """The processes, and what the trainer has written of the run."""

    folder: Path
    nodes: list[Node]

    @property
    def file(self) -> Path:
        return self.folder / "run" / "run.toml"

    def join(self, name: str, blocks: str = "") -> Node:
        """A node with the run file; one without blocks knows the run's name only, and takes what the run needs most."""
        peers = [self.nodes[0].said["multiaddr"]] if self.nodes else []
        words = ["--run", str(self.file) if blocks else "prose"]
        node = start_node(name, blocks, words, peers, self.folder)
        self.nodes.append(node)
        node.wait_for("ready" if self.nodes[1:] else "multiaddr")
        return node

    def rows(self, kind: str = "version") -> list[dict[str, Any]]:
        file = self.folder / "runs" / "prose" / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [row for line in lines if line.endswith("}") and kind in (row := json.loads(line)) and row.get("loss") is not None]


def run(folder: Path, nodes: list[Node]) -> bool:
    """All of it; True if the run lost nothing and the answer was the right one. Appends to `nodes` as they start."""
    training = Run(folder=folder, nodes=nodes)
    console.rule("1. text, a tokenizer, and a run file", align="left")
    prepare(training.file.parent)
    console.rule("2. three volunteers join the run", align="left")
    for name, blocks in (("anna", "0:3"), ("ben", "3:6"), ("cleo", "3:6")):
        node = training.join(name, blocks)
        console.print(f"  [green]{name}[/] trains blocks {blocks} as process {node.process.pid}")
    console.rule("3. they train; ben is killed, and dora joins", align="left")
    _train(training)
    console.rule("4. what happened", align="left")
    _report(training)
    console.rule("5. the same nodes answer with the trained weights", align="left")
    return _answer(training)


def prepare(folder: Path) -> None:
    """The example's text and tokenizer, and its run file with CHANGES."""
    write_prose_run(folder, CHANGES)
    console.print(
        f"{len(list((folder / 'text').iterdir()))} topics of Python's own documentation; {STEPS} steps of {TOKENS:,} tokens"
    )


def _train(training: Run) -> None:
    """Until the trainer has ended. A third of the way ben is killed, and at half of it dora starts."""
    words = ["train", str(training.file), "--peer", training.nodes[0].said["multiaddr"], "--listen", "127.0.0.1:0"]
    words += ["--out", str(training.folder / "runs"), "--data-dir", str(training.folder / "trainer-data")]
    trainer = start_process("trainer", words, training.folder)
    ben, shown, ends_s = training.nodes[1], 0, time.monotonic() + LIMIT_S
    try:
        while trainer.process.poll() is None and time.monotonic() < ends_s:
            time.sleep(0.2)
            rows = training.rows()
            for row in rows[shown:]:
                if row["version"] == 1 or row["version"] % EVERY == 0:
                    console.print(f"  version {row['version']}: loss {row['loss']:.2f}, {row['peers']} stages")
            shown = len(rows)
            if shown >= STEPS // 3 and not ben.is_killed:
                ben.process.kill()
                ben.is_killed = True
                console.print(f"  [bold red]kill -9 {ben.process.pid}: ben is dead[/]")
            if shown >= STEPS // 2 and len(training.nodes) == 3:
                dora = training.join("dora")
                console.print(f"  [green]dora[/] joins by the run's name: {dora.said['placement']}", soft_wrap=True)
    finally:
        if trainer.process.poll() is None:
            trainer.process.kill()
    if trainer.process.wait() != 0:  # also if it took too long
        raise VolunteerError(f"the trainer failed: {trainer.last_words()} (see {trainer.directory})")


def _report(training: Run) -> None:
    rows, (last,) = training.rows(), training.rows("evaluation")[-1:]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("versions", f"{len(rows)}, each of {STEPS} once" if len(rows) == STEPS else f"{len(rows)} of {STEPS}")
    facts.add_row("loss", f"{rows[0]['loss']:.2f} at first, {rows[-1]['loss']:.2f} at last; {last['loss']:.2f} on held-out text")
    facts.add_row(
        "micro-batches", f"{sum(row['redone'] for row in rows)} computed again, as ben died; none lost, none counted twice"
    )
    facts.add_row("speed", f"{TOKENS * len(rows) / rows[-1]['time_s']:,.0f} tokens/s, the death included")
    console.print(facts)


def _answer(training: Run) -> bool:
    """A client without weights asks the nodes; transformers alone continues the same text with the run's checkpoint."""
    thin = ask_thinly(
        training.folder / "runs" / "prose" / f"checkpoint-{STEPS}", PROMPT, training.nodes, training.folder, name="prose"
    )
    console.print(PROMPT, end="", markup=False)
    return report_thin(thin) and len(training.rows()) == STEPS
