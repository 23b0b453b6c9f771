"""Follows one real micro-batch through a real swarm.

On this machine: G1 to G9 of docs/training.md, in milliseconds and bytes.

Three nodes train the model of examples/prose: `anna` and `cleo` hold the same blocks, `ben` the others. Every part notes when a
micro-batch passes it (`swarm/trace.py`, switched on by SWARM_TRACE); all processes share this machine's monotonic clock. Two tables: one
micro-batch, from its drawing to its receipts; and what its version takes from the last receipt to the next version.

Several micro-batches are under way at once, and a device computes one thing at a time: a time may be the wait for another one.

Run: scripts/trace_gradient
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from marks import Mark, read_marks
from run_files import write_prose_run
from trace_table import table_of
from volunteers import Node, VolunteerError, console, start_node, start_process, stop

OF_A_MICRO_BATCH = {
    "taken": ("G1", "the trainer takes the index"),
    "drawn": ("G1", "ids, labels, positions are drawn"),
    "chosen": ("G2", "a route is chosen"),
    "sent": ("G3", "the pass goes to the next hop"),
    "received": ("G4", "the pass is here, and checked"),
    "forward begun": ("G5", "the device begins the forward"),
    "forward done": ("G5", "the forward is done"),
    "backward begun": ("G5", "the device begins the backward"),
    "backward done": ("G5", "the sums have the gradient"),
    "answered": ("G5", "the answer from below is here"),
    "counted": ("G6", "the hops' receipts are counted"),
}
OF_A_VERSION = {
    "complete": ("G6", "the last receipt is here"),
    "reduced": ("G7", "a member has the group's sum"),
    "agreed": ("G7", "a leader has all votes"),
    "applying": ("G8", "all groups have agreed: apply"),
    "stepped": ("G9", "a member has stepped"),
}


def of_micro_batch(marks: list[Mark], version: int, index: int) -> list[Mark]:
    """The marks of micro-batch `index` of that version."""
    return [mark for mark in marks if _is_of(mark, version) and mark.step == index and mark.place in OF_A_MICRO_BATCH]


def of_version(marks: list[Mark], version: int) -> list[Mark]:
    """The marks of that version's close."""
    return [mark for mark in marks if _is_of(mark, version) and mark.place in OF_A_VERSION]


def _is_of(mark: Mark, version: int) -> bool:
    return mark.session == f"{version:08x}"


def show(marks: list[Mark], names: dict[int, str], version: int, index: int) -> None:
    """Both tables. VolunteerError if the trace lacks the micro-batch."""
    passed, closed = of_micro_batch(marks, version, index), of_version(marks, version)
    if not passed or not closed:
        raise VolunteerError(f"the trace has no micro-batch {index} of version {version}")
    console.print(table_of(f"micro-batch {index} of version {version}", passed, OF_A_MICRO_BATCH, names, "trainer"))
    console.print(table_of(f"from version {version} to {version + 1}", closed, OF_A_VERSION, names, "trainer"))


def train(run_file: Path, folder: Path) -> dict[int, str]:
    """The whole run; the names of the nodes by process."""
    nodes, trainer = list[Node](), list[Node]()
    try:
        with console.status("three nodes and a trainer start"):
            for name, blocks in (("anna", "0:3"), ("ben", "3:6"), ("cleo", "0:3")):
                peers = [nodes[0].wait_for("multiaddr")] if nodes else []
                nodes.append(start_node(name, blocks, ["--run", str(run_file)], peers, folder))
                nodes[-1].wait_for("ready")
            words = [
                "train",
                str(run_file),
                "--peer",
                nodes[0].said["multiaddr"],
                "--listen",
                "127.0.0.1:0",
                "--out",
                str(folder),
            ]
            words += ["--data-dir", str(folder / "trainer" / "data")]
            trainer.append(start_process("trainer", words, folder))
            trainer[0].wait_for("trained")
        return {node.process.pid: node.name for node in nodes}
    finally:
        stop([*trainer, *nodes])  # which writes their marks


def run(steps: int, batch_tokens: int, index: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="murmuration-trace-"))
    os.environ["SWARM_TRACE"] = str(folder / "trace.jsonl")
    try:
        with console.status("text and tokenizer"):
            fields = {"training.steps": steps, "training.batch_tokens": batch_tokens, "schedule.warmup_steps": 1}
            run_file = write_prose_run(folder / "prose", fields)
        names = train(run_file, folder)
        show(read_marks(folder / "trace.jsonl"), names, steps - 1, index)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/trace_gradient", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3, help="versions to train; the last one is traced (default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=4_096, help="of one version (default: %(default)s)")
    parser.add_argument("--index", type=int, default=1, help="the micro-batch (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        run(max(1, arguments.steps), arguments.batch_tokens, arguments.index)
    except VolunteerError as error:
        print(f"trace_gradient: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
