"""What a trainer has noted of its run, bounded, for peers that watch.

A run may have a million versions, so old ones are thinned out: what is kept is a curve of about the same density everywhere.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.runs.spreading import spread
from node.training import metrics
from node.training.metrics import EvaluationRow, EventRow, Row, VersionRow
from protocols import journal
from protocols.errors import CheckpointError
from protocols.journal import Noted, NotedEvaluation, NotedEvent, NotedVersion
from protocols.training import MAX_LOSS
from protocols.words import one_line

MAX_VERSIONS = 1_024
MAX_EVALUATIONS = 256
MAX_EVENTS = 200
MAX_WITH_SAMPLES = 8
"""Evaluations, the newest, whose samples are kept."""


class NotedRows:
    """Of one run in one process; rows have numbers from 1 on. Belongs to one thread."""

    def __init__(self, rows: Iterable[Noted] = ()) -> None:
        self.id = secrets.token_bytes(journal.JOURNAL_ID_BYTES)
        self._rows = list(enumerate(rows, 1))
        self.newest = len(self._rows)
        """Number of the newest row."""
        self._bound()

    def add(self, row: Row) -> None:
        """The newest. A version that is made again replaces itself, and what came after it."""
        noted = noted_of(row)
        if isinstance(noted, NotedVersion):
            self._drop_from(noted.version)
        self.newest += 1
        self._rows.append((self.newest, noted))
        self._bound()

    def after(self, number: int) -> tuple[Sequence[Noted], int]:
        """The next rows after that one, as many as one answer takes, and the number of the last of them."""
        start = bisect_right(self._rows, number, key=lambda one: one[0])
        found = journal.fitting([row for _, row in self._rows[start : start + journal.MAX_ROWS]])
        return found, self._rows[start + len(found) - 1][0] if found else self.newest

    def _drop_from(self, version: int) -> None:
        if any(isinstance(row, NotedVersion) and row.version >= version for _, row in self._rows):
            self._rows = [one for one in self._rows if isinstance(one[1], NotedEvent) or one[1].version < version]

    def _bound(self) -> None:
        for kind, most in ((NotedVersion, MAX_VERSIONS), (NotedEvaluation, MAX_EVALUATIONS)):
            versions = [row.version for _, row in self._rows if isinstance(row, kind)]
            if len(versions) > most:
                kept = spread(sorted(set(versions)), most // 2)
                self._rows = [one for one in self._rows if not isinstance(one[1], kind) or one[1].version in kept]
        events = self._numbers(NotedEvent)[:-MAX_EVENTS]
        if events:
            self._rows = [one for one in self._rows if one[0] > events[-1] or not isinstance(one[1], NotedEvent)]
        old = frozenset(self._numbers(NotedEvaluation)[:-MAX_WITH_SAMPLES])
        for at, (number, row) in enumerate(self._rows):
            if number in old and isinstance(row, NotedEvaluation) and row.samples:
                self._rows[at] = number, replace(row, samples=())

    def _numbers(self, kind: type[Noted]) -> list[int]:
        return [number for number, row in self._rows if isinstance(row, kind)]


def read_noted(folder: Path) -> list[Noted]:
    """What an earlier process has written to the run's metrics; nothing if there are none. Reads a file."""
    try:
        versions, evaluations = metrics.read(folder)
        events = metrics.read_events(folder)[-MAX_EVENTS:]
    except CheckpointError:
        return []
    made = (*_made(VersionRow, versions), *_made(EvaluationRow, evaluations), *events)
    return [noted_of(row) for row in made]


def _made(kind: type[Row], rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A line of an older version of this program may lack a field."""
    found = list[Row]()
    for row in rows:
        try:
            found.append(kind(**row))
        except TypeError:
            continue
    return found


def noted_of(row: Row) -> Noted:
    """As watchers are given it: finite numbers, and texts of one line, cut off. Pure."""
    match row:
        case VersionRow():
            return NotedVersion(
                version=row.version, loss=_finite(row.loss), tokens=row.tokens, tokens_per_s=_positive(row.tokens_per_s, journal.MAX_SPEED),
                grad_norm=_positive(row.grad_norm, MAX_LOSS), time_s=_positive(row.time_s), num_stages=row.peers,
            )  # fmt: skip
        case EvaluationRow():
            samples = ((_cut(prompt), _cut(text)) for prompt, text in list(row.samples.items())[: journal.MAX_SAMPLES])
            return NotedEvaluation(
                version=row.evaluation, loss=_finite(row.loss), bits_per_byte=_finite(row.bits_per_byte, journal.MAX_BITS),
                num_tokens=row.tokens, time_s=_positive(row.time_s), samples=tuple(samples),
            )  # fmt: skip
        case EventRow():
            return NotedEvent(
                event=_cut(row.event, journal.MAX_EVENT), version=row.version, time_s=_positive(row.time_s), text=_cut(row.text)
            )


def _finite(value: float | None, most: float = MAX_LOSS) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) <= most else None


def _positive(value: float, most: float = journal.MAX_SECONDS) -> float:
    return max(0.0, _finite(value, most) or 0.0)


def _cut(text: str, longest: int = journal.MAX_TEXT) -> str:
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"
