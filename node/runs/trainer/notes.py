"""What a trainer has noted of its run, for peers that watch.

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


class Notes:
    """Of one run in one process; notes have numbers from 1 on. Belongs to one thread."""

    def __init__(self, notes: Iterable[Noted] = ()) -> None:
        self.id = secrets.token_bytes(journal.JOURNAL_ID_BYTES)
        self._notes = list(enumerate(notes, 1))
        self.newest = len(self._notes)
        """Number of the newest note."""
        self._bound()

    def add(self, note: Row) -> None:
        """The newest. A version that is made again replaces itself, and what came after it."""
        noted = noted_of(note)
        if isinstance(noted, NotedVersion):
            self._drop_from(noted.version)
        self.newest += 1
        self._notes.append((self.newest, noted))
        self._bound()

    def after(self, number: int) -> tuple[Sequence[Noted], int]:
        """The next notes after that one, as many as one answer takes, and the number of the last of them."""
        start = bisect_right(self._notes, number, key=lambda one: one[0])
        found = journal.fitting([note for _, note in self._notes[start : start + journal.MAX_NOTES]])
        return found, self._notes[start + len(found) - 1][0] if found else self.newest

    def _drop_from(self, version: int) -> None:
        if any(isinstance(note, NotedVersion) and note.version >= version for _, note in self._notes):
            self._notes = [one for one in self._notes if isinstance(one[1], NotedEvent) or one[1].version < version]

    def _bound(self) -> None:
        for kind, most in ((NotedVersion, MAX_VERSIONS), (NotedEvaluation, MAX_EVALUATIONS)):
            versions = [note.version for _, note in self._notes if isinstance(note, kind)]
            if len(versions) > most:
                kept = spread(sorted(set(versions)), most // 2)
                self._notes = [one for one in self._notes if not isinstance(one[1], kind) or one[1].version in kept]
        events = self._numbers(NotedEvent)[:-MAX_EVENTS]
        if events:
            self._notes = [one for one in self._notes if one[0] > events[-1] or not isinstance(one[1], NotedEvent)]
        old = frozenset(self._numbers(NotedEvaluation)[:-MAX_WITH_SAMPLES])
        for at, (number, note) in enumerate(self._notes):
            if number in old and isinstance(note, NotedEvaluation) and note.samples:
                self._notes[at] = number, replace(note, samples=())

    def _numbers(self, kind: type[Noted]) -> list[int]:
        return [number for number, note in self._notes if isinstance(note, kind)]


def read_noted(folder: Path) -> list[Noted]:
    """What an earlier process has written to the run's metrics; nothing if there are none. Reads a file."""
    try:
        versions, evaluations = metrics.read(folder)
        events = metrics.read_events(folder)[-MAX_EVENTS:]
    except CheckpointError:
        return []
    made = (*_made(VersionRow, versions), *_made(EvaluationRow, evaluations), *events)
    return [noted_of(note) for note in made]


def _made(kind: type[Row], notes: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A line of an older version of this program may lack a field."""
    found = list[Row]()
    for note in notes:
        try:
            found.append(kind(**note))
        except TypeError:
            continue
    return found


def noted_of(note: Row) -> Noted:
    """As watchers are given it: finite numbers, and texts of one line, cut off. Pure."""
    match note:
        case VersionRow():
            return NotedVersion(
                version=note.version, loss=_finite(note.loss), tokens=note.tokens,
                tokens_per_s=_positive(note.tokens_per_s, journal.MAX_SPEED),
                grad_norm=_positive(note.grad_norm, MAX_LOSS), time_s=_positive(note.time_s), num_stages=note.peers,
            )  # fmt: skip
        case EvaluationRow():
            samples = ((_cut(prompt), _cut(text)) for prompt, text in list(note.samples.items())[: journal.MAX_SAMPLES])
            return NotedEvaluation(
                version=note.evaluation, loss=_finite(note.loss), bits_per_byte=_finite(note.bits_per_byte, journal.MAX_BITS),
                num_tokens=note.tokens, time_s=_positive(note.time_s), samples=tuple(samples),
            )  # fmt: skip
        case EventRow():
            return NotedEvent(
                event=_cut(note.event, journal.MAX_EVENT),
                version=note.version,
                time_s=_positive(note.time_s),
                text=_cut(note.text),
            )


def _finite(value: float | None, most: float = MAX_LOSS) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) <= most else None


def _positive(value: float, most: float = journal.MAX_SECONDS) -> float:
    return max(0.0, _finite(value, most) or 0.0)


def _cut(text: str, longest: int = journal.MAX_TEXT) -> str:
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"
