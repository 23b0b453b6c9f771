"""An emulated wide-area network.

Client and three nodes are in network namespaces, 100 ms and 100 Mbit/s apart (`wide_network.py`).

A token's floor is its legs' one-way delays and the computing (client -> hop -> hop -> hop -> client: 4 legs of 50 ms). The client
runs in a namespace of its own, as `python -m benchmarks.wide_area CHECKPOINT PEER`, and prints what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from marks import Mark, read_marks
from volunteers import VolunteerError, console, start_node

from benchmarks import hops, models, timing, wide_network
from benchmarks.swarms import Swarms
from benchmarks.wide_network import RATE_MBIT, RTT_MS

NUM_NODES = 3
GUESSES = 7
"""Tokens that prompt lookup may guess at once; with the one before them they still count as a decode at a node."""


def measure(running: Swarms, repeats: int, num_tokens: int) -> dict[str, Any]:
    """Section `wide area`; VolunteerError if it cannot run here. SWARM_TRACE must be set."""
    shape, share = models.SMALL, models.SMALL.blocks // NUM_NODES
    model, place = running.path(shape), Path(tempfile.mkdtemp(prefix="wide-", dir=running.folder))
    with wide_network.wide_network(NUM_NODES + 1) as wan:
        try:
            with console.status("a wide swarm of 3 starts"):
                for index in range(NUM_NODES):
                    peers = [running.nodes[0].wait_for("multiaddr")] if running.nodes else []
                    span = f"{index * share}:{(index + 1) * share}"
                    before = tuple(wan.command(index, []))
                    running.nodes.append(
                        start_node(f"wide{index}", span, model, peers, place, host=wan.address(index), before=before)
                    )
                for node in running.nodes:
                    node.wait_for("ready")
            peer = running.nodes[0].said["multiaddr"]
            command = wan.command(NUM_NODES, [sys.executable, "-m", "benchmarks.wide_area", str(model), peer])
            with console.status("a client generates far away"):
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
                found = subprocess.run(
                    [*command, str(repeats), str(num_tokens)], capture_output=True, text=True, env=environment, check=False
                )
        finally:
            running.stop_all()
    if found.returncode:
        raise VolunteerError(f"the far client failed: {(found.stderr.strip().splitlines() or ['no word'])[-1]}")
    return _summary(json.loads(found.stdout.splitlines()[-1]), str(shape))


def _summary(said: dict[str, Any], shape: str) -> dict[str, Any]:
    """The client's runs, and what the nodes' marks add to them."""
    marks = read_marks(Path(os.environ["SWARM_TRACE"]))
    runs = [hops.Run(**run) for run in said["plain"]]
    tokens = [hops.tokens_of(marks, run, said["pid"]) for run in runs]
    compute = [statistics.median(hops.compute_us(token) for token in many) / 1e3 for many in tokens]
    token_ms = [statistics.median(run.gaps_ms[1:]) for run in runs]
    legs_ms = (NUM_NODES + 1) * RTT_MS / 2
    over = [there / (legs_ms + own) for there, own in zip(token_ms, compute, strict=True)]
    speedup = [plain / quick for plain, quick in zip(said["plain_s"], said["lookup_s"], strict=True)]
    return {
        "model": shape,
        "hops": NUM_NODES,
        "rtt_ms": RTT_MS,
        "rate_mbit": RATE_MBIT,
        "token_ms": timing.spread(token_ms),
        "legs_ms": legs_ms,
        "compute_ms": timing.spread(compute),
        "of_floor": timing.spread(over),
        "frame_bytes": max(mark.num_bytes for mark in _decoding(marks, runs) if mark.place == "encoded"),
        "first_token_ms": timing.spread([run.gaps_ms[0] for run in runs]),
        "speculation": {**timing.spread(speedup, largest=True), "same_tokens": said["same"]},
    }


def _decoding(marks: list[Mark], runs: list[hops.Run]) -> list[Mark]:
    """The marks of single decoded tokens."""
    return [mark for mark in marks if mark.step > 0 and any(run.start_ns <= mark.at_ns <= run.stop_ns for run in runs)]


def _client(model_dir: str, peer: str, repeats: int, num_tokens: int) -> dict[str, Any]:
    """In its namespace: greedy decoding, plainly and with guesses looked up in the text so far, in turn."""
    import torch

    from swarm import trace
    from swarm.client import SwarmModelForCausalLM

    torch.set_num_threads(1)
    ids = models.prompt(models.SMALL, 8).repeat(1, 4)
    said: dict[str, Any] = {"plain": [], "plain_s": [], "lookup_s": [], "same": True, "pid": os.getpid()}
    with SwarmModelForCausalLM.from_pretrained(model_dir, peers=[peer], dtype="float32") as model:
        options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        for repeat in range(repeats + 1):
            start_ns, started = time.monotonic_ns(), time.perf_counter()
            gaps = timing.decode_ms(model, ids, num_tokens)
            plain_s, stop_ns = time.perf_counter() - started, time.monotonic_ns()
            started = time.perf_counter()
            quick = model.generate(ids, prompt_lookup_num_tokens=GUESSES, **options)
            lookup_s = time.perf_counter() - started
            if repeat:
                said["plain"].append({"gaps_ms": gaps, "start_ns": start_ns, "stop_ns": stop_ns})
                said["plain_s"].append(plain_s)
                said["lookup_s"].append(lookup_s)
        said["same"] = bool(torch.equal(quick, model.generate(ids, **options)))
    trace.flush()
    return said


if __name__ == "__main__":
    print(json.dumps(_client(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
