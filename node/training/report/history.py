"""A run's history as numbers to plot, read from `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.training import metrics
from protocols.errors import CheckpointError

MAX_POINTS = 2_000
"""Points of one curve; a longer one is thinned out."""

SMOOTHING_SHARE = 0.01
"""A smoothed curve goes by the mean of this share of the versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Of one run, in the order of versions. It has at least one version."""

    name: str
    versions: Sequence[Mapping[str, Any]]
    """As `metrics.VersionRow`."""
    evaluations: Sequence[Mapping[str, Any]]
    """As `metrics.EvaluationRow`."""
    events: Sequence[metrics.EventRow]

    def column(self, key: str) -> list[float]:
        """One number of every version; of one that has none, that of the version before."""
        found, last = list[float](), 0.0
        for row in self.versions:
            last = float(row[key]) if row.get(key) is not None else last
            found.append(last)
        return found

    def evaluated(self, key: str) -> list[float]:
        """One number of every evaluation that has a loss."""
        return [float(row[key]) for row in self.evaluations if row.get("loss") is not None]

    @property
    def bytes_per_token(self) -> list[float]:
        """What stages sent to each other, of each version."""
        return [sent / tokens for sent, tokens in zip(self.column("bytes_sent"), self.batch_tokens, strict=True)]

    @property
    def batch_tokens(self) -> list[float]:
        return [max(1.0, float(row["tokens"]) / max(1, row["version"])) for row in self.versions]


def read_history(folder: Path) -> History:
    """CheckpointError if the folder has no metrics, or no version in them."""
    versions, evaluations = metrics.read(folder)
    if not versions:
        raise CheckpointError(f"{folder / metrics.FILE} has no version yet: train first")
    return History(
        name=folder.resolve().name, versions=versions, evaluations=evaluations, events=metrics.read_events(folder)
    )  # fmt: skip


def thinned(values: Sequence[float], most: int = MAX_POINTS) -> list[float]:
    """At most so many of them, evenly, the first and the last included."""
    if len(values) <= most:
        return list(values)
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean over SMOOTHING_SHARE of the values, without a bias at the beginning."""
    keep = 1 - 1 / max(1.0, SMOOTHING_SHARE * len(values))
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        found.append(total / weight)
    return found
