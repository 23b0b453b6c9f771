"""What a run has measured: one JSON object per line in `metrics.jsonl`.

A line is a version (`"version": 7, "loss": …`), an evaluation (`"evaluation": 7, …`) or an event (`"event": "joined", …`). Lines are
appended and flushed one by one, so a process that dies loses none that it has shown. A run that is resumed goes on in the same file; the
lines of versions that are computed again (after all processes were killed) replace the earlier ones for readers, and what came after.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from protocols.errors import CheckpointError, DiskFullError

FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One optimizer step. Losses are in nats per target token."""

    version: int
    """Optimizer steps that were made, this one included."""
    tokens: int
    """Tokens of all versions so far, padding included."""
    loss: float | None
    """Mean over the target tokens of the version's batch, of the micro-batches whose loss this trainer knows. None: it knows none, since
    the trainer that computed them has died; their gradient is in the sums all the same."""
    lr: float
    """Learning rate of this step."""
    grad_norm: float
    """Of the mean gradient of the whole model, before clipping."""
    time_s: float
    """Seconds since the run began in this process."""
    tokens_per_s: float
    """Of this version, padding included."""
    peers: int
    """Stages that took part."""
    bytes_sent: int
    """Between stages, for this version: hidden states and gradients."""
    waiting_s: float
    """Seconds in which this trainer waited for groups to agree and apply."""
    redone: int
    """Micro-batches that were computed again, because a stage died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """Loss on the validation text."""

    evaluation: int
    """The version that was evaluated."""
    loss: float | None
    """Mean over target tokens, nats; None, as the two below, if there is no validation data."""
    perplexity: float | None
    bits_per_byte: float | None
    """Of the text's UTF-8 bytes."""
    tokens: int
    """Target tokens that were evaluated."""
    time_s: float
    """Seconds since the run began in this process."""
    samples: Mapping[str, str]
    """What the model continues each of the run's prompts with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened to the run."""

    event: str
    """joined, gone (a stage left or died), waiting, checkpoint, …"""
    version: int
    """That the run was at."""
    time_s: float
    """Seconds since the run began in this process."""
    text: str = ""


Row = VersionRow | EvaluationRow | EventRow
OnRow = Callable[[Row], None]
"""Told each line as it is written."""


class MetricsFile:
    """Appends lines. `close` it, or use it as a context."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run; it is made if it is absent. DiskFullError if the file cannot be opened."""
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise DiskFullError(f"cannot write {self.path}: {error.strerror or error}") from error

    def write(self, row: Row) -> None:
        """Append one line. DiskFullError if it cannot be written: what was there stays, and a half line is skipped by readers."""
        try:
            self._file.write(json.dumps(asdict(row)) + "\n")
            self._file.flush()
        except OSError as error:
            raise DiskFullError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def mean_row(
    version: int, loss_sum: float, num_targets: int, num_bytes: int, time_s: float, samples: Mapping[str, str]
) -> EvaluationRow:
    """An evaluation from its sums; without targets there is no loss."""
    loss = loss_sum / num_targets if num_targets else None
    return EvaluationRow(
        evaluation=version, loss=loss, perplexity=None if loss is None else perplexity(loss),
        bits_per_byte=None if loss is None else bits_per_byte(loss_sum, num_bytes), tokens=num_targets, time_s=time_s,
        samples=samples,
    )  # fmt: skip


def read_events(folder: Path) -> list[EventRow]:
    """In the order in which they were written. CheckpointError if there is no such file."""
    return [
        EventRow(
            event=str(row["event"]), version=int(row.get("version", 0)), time_s=float(row.get("time_s", 0.0)),
            text=str(row.get("text", "")),
        )
        for row in _rows(folder / FILE) if "event" in row
    ]  # fmt: skip


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines of versions, lines of evaluations), each in the order of versions. Of a version that was made again, the last line counts, and
    earlier lines of later versions do not.

    CheckpointError if there is no such file.
    """
    versions: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    newest = -1
    for row in _rows(folder / FILE):
        if "evaluation" in row:
            evaluations[row["evaluation"]] = row
        elif "version" in row and "event" not in row:
            if row["version"] <= newest:
                versions = {key: one for key, one in versions.items() if key < row["version"]}
                evaluations = {key: one for key, one in evaluations.items() if key < row["version"]}
            newest = row["version"]
            versions[newest] = row
    return [versions[key] for key in sorted(versions)], [evaluations[key] for key in sorted(evaluations)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; is this the folder of a run?") from error
    for line in lines:
        with contextlib.suppress(ValueError):  # the half line of a process that was killed
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def perplexity(loss: float) -> float:
    """e to the loss; infinite if that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss_sum: float, num_bytes: int) -> float:
    """loss_sum: nats over all target tokens, which stand for so many UTF-8 bytes (at least 1)."""
    return loss_sum / math.log(2) / max(1, num_bytes)
