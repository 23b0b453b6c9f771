"""A trainer's part in one run."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from node.runs.keeping import Keeping
from node.runs.opening import OpenRun, RunData
from node.runs.trainer.batch_source import BatchSource, batches_of
from node.runs.trainer.run_reports import RunReports
from node.training.contribution import Contribution
from protocols.about import Trained
from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.kept import Kept
from protocols.leases import Done, Finished
from swarm.clock import SYSTEM, Clock
from swarm.peer.peer import Peer
from swarm.training.closing import Closing
from swarm.training.coordinator import Coordinator, Step
from swarm.training.election import Trainers
from swarm.training.lease_desk import LeaseDesk
from swarm.training.members import Members
from swarm.training.pipeline import Pipeline
from swarm.training.recovery import Recovery
from swarm.training.turns import Turns
from swarm.training.worker import Worker

AfterStep = Callable[[Step], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A run, and the peer that takes part in it as a trainer."""

    run: OpenRun
    data: RunData
    peer: Peer
    members: Members


class TrainerPart:
    """Trains one run with others. Belongs to one event loop."""

    def __init__(
        self,
        joined: Joined,
        reports: RunReports,
        after: Sequence[AfterStep] = (),
        keeping: Keeping | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """after: awaited in this order after each step of a run that this trainer coordinates, before the next one begins: what takes
        long starts a task of its own. keeping: the checkpoints that this process keeps."""
        self._after = after if keeping is None else (*after, keeping.after)
        self._keeping = keeping
        run, peer, members = joined.run, joined.peer, joined.members
        self._run, self._members, self._reports, self._contribution = run, members, reports, Contribution(clock)
        pipeline = Pipeline(
            members=members, spec=run.spec, source=BatchSource(batches_of(joined.data, run.spec)),
            clock=clock, rng=random.Random(peer.peer_id), on_wait=reports.waits, on_accused=self._accused,
        )  # fmt: skip
        desk = LeaseDesk(peer.peer_id, clock, lambda: pipeline.window)
        recovery = Recovery(members=members, clock=clock, own_kept=self._kept, on_wait=reports.waits, on_restore=reports.restores)
        coordinator = Coordinator(
            members=members, desk=desk, closing=Closing(members, run.spec), spec=run.spec,
            clock=clock, on_wait=reports.waits, recovery=recovery,
        )  # fmt: skip
        self.turns = Turns(
            me=peer.peer_id, others=Trainers(run.model, peer.peer_id, peer.directory, peer.pool),
            worker=Worker(run.model, pipeline, self._note, reports.begin, self._done), desk=desk, coordinator=coordinator,
            after=self._stepped, clock=clock, on_turn=lambda text: reports.say("trainer", text),
        )  # fmt: skip

    async def train(self) -> None:
        """From the version that the stages have, or a checkpoint, to the run's last one. NonFiniteGradientError as of `Turns.train`."""
        last = self._run.spec.batch.steps
        await self.turns.train(last)
        if self._keeping is not None:
            await self._keeping.finish(last)
        self._reports.say("trained", f"{self._run.model.name}: version {last} of {last}")

    def trained(self) -> Trained:
        """What this trainer has sent through the stages so far."""
        return self._contribution.as_trained(self._run.model, "trainer")

    def _note(self, finished: Finished) -> None:
        self._contribution.stepped(finished.version)
        self._reports.note(finished)

    def _accused(self, peer: PeerId, cause: SwarmError) -> None:
        stage = self._members.of(peer)
        self._reports.leaves_out((stage.record.name if stage else "") or short_peer(peer), cause)

    def _done(self, done: Done) -> None:
        self._contribution.add(self._run.spec.batch.batch_tokens // self._run.spec.num_micro_batches)

    async def _stepped(self, step: Step) -> None:
        for work in self._after:
            await work(step)

    async def _kept(self) -> Kept | None:
        return None if self._keeping is None else await self._keeping.kept()
