"""What a hop costs beyond its compute, microsecond by microsecond.

Measured with one stream of the tiny model over 1, 2 and 4 nodes.

A token's time is cut by the marks of `swarm/trace.py` into stretches that follow each other without a gap; each
belongs to one process. Overhead per hop = (token's time - the client's own compute - the nodes' forwards) / hops. The old definition, kept
beside it, is (token's time - local token's time) / hops: it also counts that a forward after a pause of some milliseconds is
slower than one in a tight loop.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from marks import Mark, read_marks

from benchmarks import models, timing
from benchmarks.swarms import Swarms

COMPUTE = {"called", "asked"}
"""Marks that end a stretch of the client's own compute: norm, head, sampling and `generate`; then the embedding."""

FORWARD = "forwarded"

STAGES = {
    "called": "client: norm, head, sampling, generate",
    "planned": "client: checks and plan",
    "asked": "client: embedding",
    "embedded": "client: into the loop",
    "framed": "client: framing",
    "client encoded": "client: framing",
    "arrived": "wire",
    "received": "node: message to session",
    "computing": "node: checks, waiting",
    "forwarded": "node: forward",
    "computed": "node: output checked, as bytes",
    "sent": "node: framing",
    "replied": "node: framing",
    "encoded": "node: framing",
    "answered": "client: reply checked",
    "returned": "client: out of the loop",
}
"""The mark that ends a stretch -> what the stretch is."""


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat: milliseconds of each token, and when it began and ended."""

    gaps_ms: list[float]
    start_ns: int
    stop_ns: int


def tokens_of(marks: Sequence[Mark], run: Run, client: int) -> list[dict[str, float]]:
    """Per decoded token of a run: microseconds of each stage, summed over hops. The first two tokens are not counted.

    client: the client's process id.
    """
    cuts: list[list[Mark]] = [[]]
    for mark in marks:
        if run.start_ns <= mark.at_ns <= run.stop_ns:
            cuts[-1].append(mark)
            if mark.place == "returned":
                cuts.append([mark])
    return [_stages(cut, client) for cut in cuts[2:-1]]


def _stages(cut: Sequence[Mark], client: int) -> dict[str, float]:
    spent: dict[str, float] = {}
    for before, mark in pairwise(cut):
        name = f"client {mark.place}" if mark.place == "encoded" and mark.process == client else mark.place
        stage = STAGES[name]
        spent[stage] = spent.get(stage, 0.0) + (mark.at_ns - before.at_ns) / 1e3
    return spent


def compute_us(token: dict[str, float]) -> float:
    """The client's own compute and the forwards."""
    compute = {STAGES[name] for name in (*COMPUTE, FORWARD)}
    return sum(spent for stage, spent in token.items() if stage in compute)


def overhead_us(token: dict[str, float]) -> float:
    """All the rest."""
    return sum(token.values()) - compute_us(token)


def measure(running: Swarms, repeats: int, num_tokens: int, num_nodes: Sequence[int]) -> dict[str, Any]:
    """Entries of docs/bench/inference.json, section `hops`. SWARM_TRACE must have been set before `swarm` was imported."""
    from swarm import trace

    shape = models.TINY
    ids = models.prompt(shape, 16)
    paths = {"local": models.local(running.path(shape))}
    for number in num_nodes:
        paths[f"{number} node{'s' if number > 1 else ''}"] = running.connect(shape, running.start(shape, number))

    def run(model: Any) -> Run:
        start_ns = time.monotonic_ns()
        gaps = timing.decode_ms(model, ids, num_tokens)
        return Run(gaps, start_ns, time.monotonic_ns())

    runs = timing.interleaved({name: partial(run, model) for name, model in paths.items()}, repeats, "hops")
    running.stop_all()
    trace.flush()
    marks = read_marks(Path(os.environ["SWARM_TRACE"]))
    tokens = {name: [statistics.median(run.gaps_ms[1:]) for run in many] for name, many in runs.items()}
    rows: list[dict[str, Any]] = [{"path": "local", "hops": 0, "token_ms": timing.spread(tokens["local"])}]
    for number, (name, many) in zip(num_nodes, list(runs.items())[1:], strict=True):
        rows.append(_row(name, number, tokens[name], tokens["local"], [tokens_of(marks, run, os.getpid()) for run in many]))
    return {"model": str(shape), "tokens": num_tokens, "rows": rows}


def _row(
    name: str, hops: int, token_ms: list[float], local_ms: list[float], runs: list[list[dict[str, float]]]
) -> dict[str, Any]:
    per_run = [statistics.median(overhead_us(token) for token in run) / 1e3 / hops for run in runs]
    old = [(there - here) / hops for there, here in zip(token_ms, local_ms, strict=True)]
    best = runs[per_run.index(min(per_run))]
    stages = {
        stage: round(statistics.median(token.get(stage, 0.0) for token in best), 1) for stage in dict.fromkeys(STAGES.values())
    }
    return {
        "path": name,
        "hops": hops,
        "token_ms": timing.spread(token_ms),
        "overhead_per_hop_ms": timing.spread(per_run),
        "old_overhead_per_hop_ms": {
            "best": round((min(token_ms) - min(local_ms)) / hops, 3),
            "median": round(statistics.median(old), 3),
        },
        "stages_us_of_best_run": stages,
    }
