"""Where the time of micro-batches goes, from all processes' marks.

A micro-batch is at one place at a time: what lies between two of its marks, one after the other, is computing, waiting for a device that
computes another one, or on the way. `scripts/trace_gradient` shows the same marks of a single micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from marks import Mark

KINDS = {
    ("forward begun", "forward done"): "computing",
    ("backward begun", "backward done"): "computing",
    ("received", "forward begun"): "waiting",
    ("answered", "backward begun"): "waiting",
    ("sent", "received"): "travelling",
    ("backward done", "answered"): "travelling",
}
"""What lies between two marks. All other time is spent by the trainer or a hop on handling messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Between two steps of a run."""

    seconds: float
    """The whole time."""
    computing_s: dict[int, float]
    """Forwards and backwards, by process."""
    micro_batch_ms: dict[str, float]
    """Mean of one micro-batch, by kind."""
    under_way: float
    """Micro-batches under way, on the average of the time in which any is."""


def spent(marks: Sequence[Mark], first: int, last: int) -> Spent:
    """From the end of the step to version `first` to the end of the step to version `last`. marks: in the order of time."""
    begun_ns, ended_ns = _stepped_ns(marks, first - 1), _stepped_ns(marks, last - 1)
    passes = list(_passes(marks, {f"{version:08x}" for version in range(first, last)}))
    by_kind, by_process = defaultdict[str, float](float), defaultdict[int, float](float)
    for before, after in (pair for one in passes for pair in pairwise(one)):
        kind, ns = KINDS.get((before.place, after.place), "handling"), after.at_ns - before.at_ns
        by_kind[kind] += ns
        if kind == "computing":
            by_process[after.process] += ns / 1e9
    return Spent(
        seconds=(ended_ns - begun_ns) / 1e9,
        computing_s=dict(by_process),
        micro_batch_ms={kind: ns / 1e6 / len(passes) for kind, ns in by_kind.items()},
        under_way=sum(by_kind.values()) / _covered_ns([(one[0].at_ns, one[-1].at_ns) for one in passes]),
    )


def _stepped_ns(marks: Sequence[Mark], version: int) -> int:
    """When the last member had stepped from this version."""
    return max(mark.at_ns for mark in marks if mark.place == "stepped" and mark.session == f"{version:08x}")


def _passes(marks: Sequence[Mark], sessions: Collection[str]) -> Iterator[list[Mark]]:
    """The marks of each micro-batch of these versions, from its drawing to its receipts."""
    found = defaultdict[tuple[str, int], list[Mark]](list)
    for mark in marks:
        if mark.session in sessions and mark.step >= 0:
            found[mark.session, mark.step].append(mark)
    yield from found.values()


def _covered_ns(intervals: Sequence[tuple[int, int]]) -> int:
    """Length of the union."""
    total, reached = 0, 0
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
