"""What a process says of its run: metrics, events, the display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from node.training import metrics
from node.training.metrics import EventRow, MetricsFile, OnRow, Row
from protocols.errors import CheckpointError
from protocols.ids import PeerId, short_peer
from swarm.clock import Clock
from swarm.training.coordinator import Step
from swarm.training.members import Members


class Journal:
    """Writes each line to `metrics.jsonl`, and tells the listeners. Belongs to one thread."""

    def __init__(self, file: MetricsFile, listeners: Sequence[OnRow], clock: Clock) -> None:
        self._file, self._listeners, self._clock = file, listeners, clock
        self._began_s = clock.now_s()
        self.version = 0
        """That the run is at."""

    def begin(self, version: int) -> None:
        """The run goes on at this version: time goes on from where the file says that it was reached, if it does."""
        self.version = version
        self._began_s = self._clock.now_s() - _time_of(self._file.path.parent, version)

    @property
    def time_s(self) -> float:
        """Seconds of the run so far, the time in which it did not run left out."""
        return self._clock.now_s() - self._began_s

    def write(self, row: Row) -> None:
        """DiskFullError if it cannot be written; the listeners are told all the same."""
        try:
            self._file.write(row)
        finally:
            for listener in self._listeners:
                listener(row)

    def event(self, event: str, text: str = "") -> None:
        """Something happened to the run now."""
        self.write(EventRow(event=event, version=self.version, time_s=self.time_s, text=text))


class Comings:
    """Notes which stages have joined, and which have gone. `after` is told each step."""

    def __init__(self, members: Members, journal: Journal) -> None:
        self._members, self._journal = members, journal
        self._names: dict[PeerId, str] | None = None

    async def after(self, step: Step) -> None:
        names = {stage.peer: stage.record.name or short_peer(stage.peer) for stage in self._members.stages}
        before, self._names = self._names if self._names is not None else names, names
        for peer in sorted(names.keys() - before.keys()):
            self._journal.event("joined", names[peer])
        for peer in sorted(before.keys() - names.keys()):
            self._journal.event("gone", before[peer])


def _time_of(folder: Path, version: int) -> float:
    try:
        versions, _ = metrics.read(folder)
    except CheckpointError:
        return 0.0
    return max((float(row["time_s"]) for row in versions if row["version"] <= version), default=0.0)
