"""Follows what trainers note of their runs, for curves and events.

All of it is what trainers claim. So each trainer's word is kept apart, and one run's history begins with one trainer's: the one that the
others say coordinates the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from node.runs.spreading import spread
from node.training.metrics import EventRow, perplexity
from node.training.report.history import History
from protocols import services
from protocols.errors import BadRequestError, SwarmError
from protocols.ids import ModelId, PeerId
from protocols.journal import JournalPart, JournalRequest, NotedEvaluation, NotedEvent, NotedVersion
from protocols.records import PeerRecord
from swarm.asking import answers
from swarm.rpc.pool import ChannelPool

ASK_S = 3.0
"""How long a trainer may take to be reached, and again for all parts of one look: the others wait for it."""

MAX_TRAINERS = 4
"""Trainers of one run that are followed: any peer can say that it is one."""

MAX_RUNS = 16
"""Runs that are followed, those of most peers."""

MAX_PARTS, MAX_PARTS_IN_ALL = 32, 256
"""Parts, of 24 KB at most, that one look asks of one trainer, and of all, each as many. The rest comes with the next look."""

MAX_VERSIONS, MAX_EVALUATIONS, MAX_EVENTS = 2_048, 512, 300
"""Notes of one trainer that are kept."""

T = TypeVar("T")


@dataclass(slots=True)
class Followed:
    """What one trainer has said so far."""

    journal: bytes = b""
    last: int = 0
    versions: dict[int, NotedVersion] = field(default_factory=dict)
    evaluations: dict[int, NotedEvaluation] = field(default_factory=dict)
    events: list[NotedEvent] = field(default_factory=list)
    coordinator: PeerId | None = None

    def take(self, part: JournalPart) -> None:
        """The next notes. BadRequestError if they lead nowhere."""
        if part.journal != self.journal:
            self.journal, self.last, self.versions, self.evaluations, self.events = part.journal, 0, {}, {}, []
        if part.last < self.last or (part.notes and part.last == self.last):
            raise BadRequestError(f"a journal's notes have growing numbers, got {part.last} after {self.last}")
        self.last, self.coordinator = part.last, part.coordinator
        for note in part.notes:
            self._add(note)

    def _add(self, note: NotedVersion | NotedEvaluation | NotedEvent) -> None:
        if isinstance(note, NotedEvent):
            self.events = [*self.events, note][-MAX_EVENTS:]
        elif isinstance(note, NotedEvaluation):
            self.evaluations[note.version] = note
            self.evaluations = _thin(self.evaluations, MAX_EVALUATIONS)
        else:
            if self.versions and note.version <= next(reversed(self.versions)):  # the run has gone back
                self._go_back(note.version)
            self.versions[note.version] = note
            self.versions = _thin(self.versions, MAX_VERSIONS)

    def _go_back(self, version: int) -> None:
        """Forget this version and later ones. They lie in order, so that a trainer that goes back with each note costs little."""
        while self.versions and next(reversed(self.versions)) >= version:
            self.versions.popitem()
        self.evaluations = {key: one for key, one in self.evaluations.items() if key < version}


def _thin(notes: dict[int, T], most: int) -> dict[int, T]:
    """Half of them, if there are too many."""
    if len(notes) <= most:
        return notes
    kept = spread(sorted(notes), most // 2)
    return {key: one for key, one in notes.items() if key in kept}


class Journals:
    """Of the runs of one swarm. Belongs to one event loop."""

    def __init__(self) -> None:
        self._followed: dict[ModelId, dict[PeerId, Followed]] = {}
        self.histories: dict[ModelId, History] = {}
        """Of each run of which a trainer has said something by the last look; trainers that are gone count, too."""

    async def look(self, pool: ChannelPool, records: Iterable[PeerRecord]) -> None:
        """Ask the trainers among these peers for what is new. A trainer that does not answer is asked again the next time."""
        asked = [(run, record) for run, found in trainers_of(records).items() for record in self._chosen(run, found)]
        most = min(MAX_PARTS, MAX_PARTS_IN_ALL // max(1, len(asked)))

        async def ask(one: tuple[ModelId, PeerRecord]) -> None:
            await self._catch_up(pool, *one, most)

        async for _ in answers(asked, ask):
            pass
        made = {run: merged(run.name, followed) for run, followed in self._followed.items()}
        self.histories = {run: one for run, one in made.items() if one is not None}

    def _chosen(self, run: ModelId, trainers: Sequence[PeerRecord]) -> Sequence[PeerRecord]:
        """Those that have answered before come first."""
        known = self._followed.get(run, {})
        return sorted(trainers, key=lambda record: (record.peer not in known, record.peer))[:MAX_TRAINERS]

    async def _catch_up(self, pool: ChannelPool, run: ModelId, record: PeerRecord, most: int) -> None:
        """most: parts."""
        followed = self._followed.get(run, {}).get(record.peer) or Followed()
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(ASK_S):
                channel = await pool.channel(record.peer, record.addresses, record.certificate)
            async with asyncio.timeout(ASK_S):
                for _ in range(most):
                    request = JournalRequest(run=run, journal=followed.journal, after=followed.last)
                    part = JournalPart.parse(await channel.unary(services.JOURNAL, request.encode(), ASK_S))
                    followed.take(part)
                    self._keep(run, record.peer, followed)
                    if not part.notes or part.last >= part.newest:
                        break

    def _keep(self, run: ModelId, peer: PeerId, followed: Followed) -> None:
        """The newest last: those that have said nothing for longest are forgotten first."""
        own = self._followed.pop(run, {})
        own.pop(peer, None)
        own[peer], self._followed[run] = followed, own
        while len(own) > 2 * MAX_TRAINERS:
            del own[next(iter(own))]
        while len(self._followed) > 2 * MAX_RUNS:
            del self._followed[next(iter(self._followed))]


def trainers_of(records: Iterable[PeerRecord]) -> dict[ModelId, list[PeerRecord]]:
    """The trainers of each run, of MAX_RUNS at most: those of most peers. Pure."""
    peers, trainers = Counter[ModelId](), dict[ModelId, list[PeerRecord]]()
    for record in records:
        peers.update({role.model for role in record.roles})
        for run in {role.model for role in record.roles if role.kind == "trainer"}:
            trainers.setdefault(run, []).append(record)
    return {run: trainers[run] for run, _ in [one for one in peers.most_common() if one[0] in trainers][:MAX_RUNS]}


def merged(name: str, followed: Mapping[PeerId, Followed]) -> History | None:
    """One history of what several trainers say; None if they have said nothing. Pure.

    Of a version, the word of the trainer counts that most of them call the coordinating one; what it does not know comes from the others.
    """
    called = Counter(one.coordinator for one in followed.values() if one.coordinator in followed)
    order = sorted(followed, key=lambda peer: (-called[peer], -len(followed[peer].versions), peer))
    versions: dict[int, NotedVersion] = {}
    evaluations: dict[int, NotedEvaluation] = {}
    events: dict[NotedEvent, None] = {}
    for peer in order:
        versions = {**followed[peer].versions, **versions}
        evaluations = {**followed[peer].evaluations, **evaluations}
        events |= dict.fromkeys(followed[peer].events)
    if not versions and not events:
        return None
    return History(
        name=name,
        versions=[_version(versions[key]) for key in sorted(versions)],
        evaluations=[_evaluation(evaluations[key]) for key in sorted(evaluations)],
        events=[_event(one) for one in sorted(events, key=lambda one: (one.version, one.time_s))][-MAX_EVENTS:],
    )


def _version(note: NotedVersion) -> dict[str, Any]:
    """As a line of `metrics.jsonl`, as far as it travels."""
    return {
        "version": note.version, "loss": note.loss, "tokens": note.tokens, "tokens_per_s": note.tokens_per_s, "grad_norm": note.grad_norm,
        "time_s": note.time_s, "peers": note.num_stages,
    }  # fmt: skip


def _evaluation(note: NotedEvaluation) -> dict[str, Any]:
    said = None if note.loss is None else perplexity(note.loss)
    return {
        "evaluation": note.version, "loss": note.loss, "perplexity": said if said is None or math.isfinite(said) else None,
        "bits_per_byte": note.bits_per_byte, "tokens": note.num_tokens, "time_s": note.time_s, "samples": dict(note.samples),
    }  # fmt: skip


def _event(note: NotedEvent) -> EventRow:
    return EventRow(event=note.event, version=note.version, time_s=note.time_s, text=note.text)
