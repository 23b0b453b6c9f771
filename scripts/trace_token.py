"""Follows one real token through a real swarm.

On this machine: T1 to T9 of docs/architecture.md, in milliseconds and bytes.

Every part notes when a step passes it (`swarm/trace.py`, switched on by SWARM_TRACE); all processes share this machine's
monotonic clock. Two tables: the prompt's last token, which also finds and opens the route, and a later one, which only decodes.

Run: scripts/trace_token "A class definition is"
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from make_model import Recipe, default_directory, make_with_bar
from marks import Mark, read_marks
from trace_table import table_of
from volunteers import Node, VolunteerError, console, start_node, stop

STAGES = {
    "taken": ("T1", "the client takes the prompt"),
    "embedded": ("T2", "tokenized and embedded; the session is asked for a step"),
    "routed": ("T3", "a route is picked from the directory's snapshot"),
    "framed": ("T4", "the step is framed"),
    "encoded": ("T4", "its bytes go to gRPC"),
    "arrived": ("T5", "the message is here, and parsed"),
    "received": ("T5", "the session's actor takes it"),
    "computing": ("T6", "its batch begins"),
    "forwarded": ("T7", "the span has run"),
    "computed": ("T7", "the event loop has its output"),
    "sent": ("T8", "the output is framed for the next hop"),
    "replied": ("T9", "the last hop answers the client"),
    "answered": ("T9", "the client has the answer, and samples"),
}


def of_step(marks: list[Mark], step: int) -> list[Mark]:
    """The marks of one step; a batch's begin and end carry no step number, and belong to the step that its process has in hand."""
    in_hand: dict[int, int] = {}
    found = []
    for mark in marks:
        if mark.place == "received":
            in_hand[mark.process] = mark.step
        belongs = in_hand.get(mark.process, -1) if mark.place in ("computing", "forwarded") else mark.step
        if belongs == step:
            found.append(mark)
    return found


def show(title: str, marks: list[Mark], names: dict[int, str]) -> None:
    console.print(table_of(title, marks, STAGES, names, "client"))


def ask(model_dir: Path, prompt: str, num_tokens: int, nodes: list[Node]) -> int:
    """Generate over the nodes; when the client took the prompt, in ns."""
    from transformers.utils import logging

    from swarm.client import SwarmModelForCausalLM

    logging.disable_progress_bar()
    with SwarmModelForCausalLM.from_pretrained(str(model_dir), peers=[nodes[0].said["multiaddr"]], dtype="float32") as model:
        taken_ns = time.monotonic_ns()
        ids = model.tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False)
        console.print(f"[dim]{model.tokenizer.decode(output[0])}[/]", soft_wrap=True)
    return taken_ns


def run(model: Path, prompt: str, num_tokens: int) -> None:
    make_with_bar(model, Recipe())
    folder, nodes = Path(tempfile.mkdtemp(prefix="murmuration-trace-")), list[Node]()
    os.environ["SWARM_TRACE"] = str(folder / "trace.jsonl")
    from swarm import trace  # which reads that when it is imported

    try:
        with console.status("two nodes and a client start"):
            nodes.append(start_node("anna", "0:3", model, [], folder))
            nodes.append(start_node("ben", "3:6", model, [nodes[0].wait_for("multiaddr")], folder))
            for node in nodes:
                node.wait_for("ready")
        taken_ns = ask(model, prompt, num_tokens, nodes)
        trace.flush()
        stop(nodes)  # which writes their marks
        marks = [mark for mark in read_marks(folder / "trace.jsonl") if mark.place in STAGES]
        names = {node.process.pid: node.name for node in nodes}
        show("the prompt, up to its first token", [Mark("taken", 0, 0, taken_ns, 0), *of_step(marks, 0)], names)
        show(f"token {num_tokens}: one decode step", of_step(marks, num_tokens - 1), names)
    finally:
        stop(nodes)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/trace_token", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="A class definition is", help="what to go on with (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=24, help="tokens to generate; the last one is traced (default: %(default)s)"
    )
    parser.add_argument("--model-dir", type=Path, default=default_directory(Recipe()), help="default: the demo's (%(default)s)")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        run(arguments.model_dir, arguments.prompt, max(2, arguments.tokens))
    except VolunteerError as error:
        print(f"trace_token: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
