"""What a trainer says of its run, to files and listeners."""

from __future__ import annotations

from node.events import Event, OnEvent
from node.runs.trainer.journal import Journal
from node.training.metrics import VersionRow
from node.training.optimizer.schedule import learning_rate
from protocols.errors import SwarmError
from protocols.leases import Finished
from protocols.runs import RunSpec
from swarm.training.blame import BLAMED_S


class RunReports:
    """Belongs to one event loop."""

    def __init__(self, spec: RunSpec, journal: Journal, on_event: OnEvent) -> None:
        self._spec, self._journal, self._on_event = spec, journal, on_event
        self._has_begun = False
        self._said = set[str]()
        """What was waited for in this version: two causes may alternate."""

    def say(self, kind: str, text: str) -> None:
        """Something that is no part of the run's history."""
        self._on_event(Event(kind, text))

    def begin(self, version: int) -> None:
        """This trainer takes part in a version."""
        if not self._has_begun:
            self._has_begun = True
            self._journal.begin(version)

    def waits(self, text: str) -> None:
        """Said once in a version."""
        if text not in self._said:
            self._said.add(text)
            self._happened("waiting", text)

    def restores(self, text: str) -> None:
        self._happened("restoring", text)

    def leaves_out(self, name: str, cause: SwarmError) -> None:
        """This trainer sends nothing through a stage for a while."""
        self._happened("left out", f"{name} for {BLAMED_S:.0f} s, since it or its neighbour is at fault: {cause}")

    def note(self, finished: Finished) -> None:
        """A version is finished, whichever trainer has closed it."""
        self._said.clear()
        spec = self._spec
        self._journal.version = finished.version
        row = VersionRow(
            version=finished.version,
            tokens=finished.version * spec.batch.batch_tokens,
            loss=finished.loss_sum / finished.num_targets if finished.num_targets else None,
            lr=learning_rate(spec.schedule, spec.optimizer.lr, finished.version - 1, spec.batch.steps),
            grad_norm=finished.grad_norm,
            time_s=self._journal.time_s,
            tokens_per_s=spec.batch.batch_tokens / finished.seconds if finished.seconds else 0.0,
            peers=finished.num_stages,
            bytes_sent=finished.num_bytes,
            waiting_s=finished.closing_s,
            redone=finished.num_redone,
        )
        self._journal.write(row)

    def _happened(self, kind: str, text: str) -> None:
        self._journal.event(kind, text)
        self._on_event(Event(kind, text))
