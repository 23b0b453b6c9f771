"""A run of 10 million parameters over a wide area: three stages.

Three nodes and a trainer are in network namespaces. The links between them change in turn: as good as this machine can make them, and
100 ms and 100 Mbit/s; each turn has a trainer of its own. What a stage computes and where a micro-batch is comes from the processes'
marks (`pass_times.py`), what a link carries from the network itself.

Run alone: python scripts/benchmarks/wide_pipeline.py [REPEATS] [VERSIONS]
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marks import Mark, read_marks
from volunteers import Node, start_node, start_process, stop

from benchmarks import pass_times, pipeline, timing
from benchmarks.wide_network import RATE_MBIT, RTT_MS, wide_network

SPANS = ("0:3", "3:6", "6:8")
NEAR = {"rtt_ms": 0.0, "rate_mbit": 10_000.0}
FAR = {"rtt_ms": RTT_MS, "rate_mbit": RATE_MBIT}
LINKS = {"near": NEAR, "far": FAR}
SETTLING = 2
"""Versions of each turn that are not counted."""

WRITES_S = 60.0
"""A trainer that leaves writes its report and its marks first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Some versions over one kind of link."""

    rows: Sequence[dict[str, Any]]
    """Of the metrics: the version before the first one that counts, and those that count."""
    processes: frozenset[int]
    """The stages' and the trainer's."""
    moved_bytes: float
    """What the busiest direction of any link carried meanwhile."""

    @property
    def versions(self) -> tuple[int, int]:
        return self.rows[0]["version"], self.rows[-1]["version"]

    @property
    def seconds(self) -> float:
        return float(self.rows[-1]["time_s"] - self.rows[0]["time_s"])

    @property
    def tokens_per_s(self) -> float:
        first, last = self.versions
        return (last - first) * pipeline.BATCH_TOKENS / self.seconds

    @property
    def closing_share(self) -> float:
        return float(sum(row["waiting_s"] for row in self.rows[1:])) / self.seconds

    @property
    def link_share(self) -> float:
        """Of what the far links could have carried."""
        return self.moved_bytes / (RATE_MBIT * 125e3 * self.seconds)


def measure(folder: Path, repeats: int, versions: int = 3) -> dict[str, Any]:
    """Section `wide pipeline`; VolunteerError if it cannot run here. SWARM_TRACE must be set."""
    place = folder / "wide-pipeline"
    place.mkdir()
    run_file = pipeline.write(place / "run")
    nodes: list[Node] = []
    turns: dict[str, list[Turn]] = {name: [] for name in LINKS}
    with wide_network(len(SPANS) + 1) as wan:
        _shape(wan, NEAR)
        try:
            for host, span in enumerate(SPANS):
                nodes.append(_start_stage(wan, host, span, run_file, nodes, place))
            for node in nodes:
                node.wait_for("ready")
            for repeat in range(repeats):
                for name, links in LINKS.items():
                    _shape(wan, links)
                    with _trainer(wan, f"{name}{repeat}", run_file, nodes, place) as trainer:
                        turns[name].append(
                            _turn(wan, pipeline.Side(place / "runs" / "bench" / "metrics.jsonl"), [*nodes, trainer], versions)
                        )
        finally:
            stop(nodes)  # which writes their marks
    return _result(turns, {node.process.pid: node.blocks for node in nodes})


def _start_stage(wan: Any, host: int, span: str, run_file: Path, nodes: Sequence[Node], place: Path) -> Node:
    peers = [nodes[0].wait_for("multiaddr")] if nodes else []
    before = tuple(wan.command(host, []))
    return start_node(
        f"stage{host}", span, ["--run", str(run_file), "--no-lan"], peers, place, host=wan.address(host), before=before
    )


@contextlib.contextmanager
def _trainer(wan: Any, name: str, run_file: Path, nodes: Sequence[Node], place: Path) -> Iterator[Node]:
    """On the last host. A new one for each turn: what it has measured of one network says nothing of another."""
    host = len(SPANS)
    words = ["train", str(run_file), "--out", str(place / "runs"), "--no-lan", "--peer", nodes[0].said["multiaddr"]]
    words += ["--listen", f"{wan.address(host)}:0", "--data-dir", str(place / "data")]
    trainer = start_process(name, words, place, before=tuple(wan.command(host, [])))
    try:
        yield trainer
        trainer.process.terminate()
        trainer.process.wait(WRITES_S)
    finally:
        stop([trainer])


def _shape(wan: Any, links: dict[str, float]) -> None:
    for host in range(wan.hosts):
        wan.shape(host, **links)


def _turn(wan: Any, side: pipeline.Side, running: Sequence[Node], versions: int) -> Turn:
    """After versions that are not counted: in SETTLING the trainer finds how many micro-batches to send at once."""
    processes = [node.process for node in running]
    first = side.wait(SETTLING, processes)[-1]
    before = _traffic(wan)
    rows = side.wait(versions, processes)
    moved = [after - so_far for so_far, after in zip(before, _traffic(wan), strict=True)]
    pids = frozenset(process.pid for process in processes)
    return Turn(rows=[first, *rows], processes=pids, moved_bytes=max(moved))


def _traffic(wan: Any) -> list[int]:
    """Bytes sent and received by each stage, so far."""
    return [count for host in range(len(SPANS)) for count in wan.traffic(host)]


def _result(turns: dict[str, list[Turn]], names: dict[int, str]) -> dict[str, Any]:
    marks = read_marks(Path(os.environ["SWARM_TRACE"]))
    rows = [_row(name, own, [_spent(marks, turn) for turn in own], names) for name, own in turns.items()]
    shares = [far.tokens_per_s / near.tokens_per_s for far, near in zip(turns["far"], turns["near"], strict=True)]
    return {"rtt_ms": RTT_MS, "rate_mbit": RATE_MBIT, "of_near": timing.spread(shares, largest=True), "rows": rows}


def _spent(marks: Sequence[Mark], turn: Turn) -> pass_times.Spent:
    return pass_times.spent([mark for mark in marks if mark.process in turn.processes], *turn.versions)


def _row(name: str, turns: Sequence[Turn], spent: Sequence[pass_times.Spent], names: dict[int, str]) -> dict[str, Any]:
    """Of one kind of link: the best and the median turn's speed, and where the time of the best one went."""
    best = max(range(len(turns)), key=lambda number: turns[number].tokens_per_s)
    turn, own = turns[best], spent[best]
    computing = {names[process]: round(seconds / own.seconds, 3) for process, seconds in sorted(own.computing_s.items())}
    return {
        "links": name,
        "tokens_per_s": timing.spread([one.tokens_per_s for one in turns], 0, largest=True),
        "computing": computing,
        "link": round(turn.link_share, 3),
        "closing": round(turn.closing_share, 3),
        "bound": bound(computing, turn.link_share, turn.closing_share),
        "under_way": round(own.under_way, 1),
        "micro_batch_ms": {kind: round(ms, 1) for kind, ms in own.micro_batch_ms.items()},
    }


def bound(computing: dict[str, float], link: float, closing: float) -> str:
    """What takes the largest share: the busiest stage is computing, closing a version, or without a micro-batch; or its link is full."""
    stage = max(computing, key=lambda span: computing[span])
    shares = {
        f"computing of stage {stage}": computing[stage],
        "bandwidth": link,
        "closing of versions": closing,
        "delay: too few micro-batches arrive": 1 - computing[stage] - closing,
    }
    return max(shares, key=lambda name: shares[name])


if __name__ == "__main__":
    import sys
    import tempfile

    numbers = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="wide-pipeline-") as made:
        os.environ["SWARM_TRACE"] = str(Path(made) / "trace.jsonl")
        print(json.dumps(measure(Path(made), *(numbers or [2])), indent=1))
