"""A trainer coordinates a run, or works for one that does.

`train` shows the whole sequence. Whatever happens to the coordinating trainer, this one goes on at the same version, with what the stages
hold. Everything that a trainer computes, it computes in both roles alike (`worker.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.leases import LeaseAnswer, LeaseRequest
from swarm.clock import Clock
from swarm.rpc.call import Call
from swarm.training.coordinator import Coordinator, OnStep, Step
from swarm.training.election import Heard, Trainers, elect, gives_way
from swarm.training.lease_desk import LeaseDesk
from swarm.training.worker import AsksCoordinator, Worker

log = logging.getLogger(__name__)

ASK_S = 4.0
"""Seconds in which the coordinating trainer answers, or another one takes its place."""

LOOK_S = 1.0
"""Seconds between two looks of a coordinating trainer at the others."""

LOOK_AGAIN_S = 0.25
"""Seconds between two looks of a trainer that waits for another one to coordinate."""

LONGEST_WAIT_S = 2.0
"""Seconds for which it waits for a trainer with a lower PeerID; then it coordinates itself."""

LEAVE_S = 1.0
"""Longest time in which the coordinating trainer is told what is free again, or the others that the run has ended."""


class _Gone(Exception):
    """The trainer that coordinated does not any more, or there are two."""


class Turns:
    """Of one trainer in one run. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        me: PeerId,
        others: Trainers,
        worker: Worker,
        desk: LeaseDesk,
        coordinator: Coordinator,
        after: OnStep,
        clock: Clock,
        on_turn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """after: awaited after each step while this trainer coordinates. on_turn: told what this trainer does from now on."""
        self._me, self._others, self._worker, self._desk, self._coordinator = me, others, worker, desk, coordinator
        self._after, self._clock, self._on_turn = after, clock, on_turn
        self._works_for: PeerId | None = None
        self._num_waits = 0

    @property
    def works_for(self) -> PeerId | None:
        """The trainer that coordinates, this one perhaps; None if it is not known now."""
        return self._works_for

    async def on_lease(self, request: bytes, call: Call) -> bytes:
        """Handles `lease`."""
        asked = LeaseRequest.parse(request)
        if self._works_for == self._me:
            return (await self._desk.reply(call.peer, asked)).encode()
        return LeaseAnswer(coordinator=self._works_for).encode()

    async def train(self, until: int) -> None:
        """Until the run is at version `until`. Cancel it to leave: what this trainer has in hand is free then.

        NonFiniteGradientError: a micro-batch is at fault, and the run cannot go on; it stays at its last version.
        """
        try:
            while not await self._turn(until):
                pass
            if self._works_for == self._me:
                await self._desk.all_told(until, LEAVE_S)
        finally:
            await self._worker.close()
            await self._leave()

    async def _turn(self, until: int) -> bool:
        """In one role, until it ends; whether the run is at its last version."""
        self._works_for = None
        heard = await self._others.look(self._worker.request(0))
        leader = elect(self._me, heard)
        if leader is None and self._num_waits * LOOK_AGAIN_S < LONGEST_WAIT_S:
            self._num_waits += 1
            await asyncio.sleep(LOOK_AGAIN_S)
            return False
        leader, self._num_waits = leader or self._me, 0
        self._works_for = leader
        try:
            if leader == self._me:
                self._on_turn("coordinates the run")
                await self._coordinate(until, [one.peer for one in heard])
            else:
                self._on_turn(f"works for trainer {short_peer(leader)}, which coordinates the run")
                await self._worker.work(self._asks(leader), until)
        except _Gone as gone:
            log.info("%s: %s", self._others.run.name, gone)
            return False
        return True

    # --- working for another

    def _asks(self, leader: PeerId) -> AsksCoordinator:
        async def ask(request: LeaseRequest) -> LeaseAnswer:
            try:
                answer = await self._others.ask(leader, request, ASK_S)
            except (SwarmError, TimeoutError) as error:
                raise _Gone(f"trainer {short_peer(leader)} does not answer: {error}") from None
            if answer.coordinator != leader:
                raise _Gone(f"trainer {short_peer(leader)} does not coordinate any more")
            return answer

        return ask

    # --- coordinating

    async def _coordinate(self, until: int, awaited: Collection[PeerId]) -> None:
        self._desk.rest()
        steps = asyncio.create_task(self._coordinator.run(until, self._stepped, awaited), name="versions")
        work = asyncio.create_task(self._worker.work(self._ask_here, until), name="micro-batches")
        watch = asyncio.create_task(self._watch(), name="other trainers")
        tasks = (steps, work, watch)
        try:
            while not steps.done():
                done, _ = await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_here(self, request: LeaseRequest) -> LeaseAnswer:
        return await self._desk.reply(self._me, request)

    async def _stepped(self, step: Step) -> None:
        self._worker.show(step.finished)
        await self._after(step)

    async def _watch(self) -> None:
        """Leases of trainers that do not answer are free again. _Gone: a trainer with a lower PeerID coordinates, too."""
        while True:
            await asyncio.sleep(LOOK_S)
            heard: list[Heard] = await self._others.look(self._worker.empty_handed())
            if gives_way(self._me, heard):
                raise _Gone("a trainer with a lower PeerID coordinates, too")
            for peer in self._desk.trainers - {one.peer for one in heard} - {self._me}:
                self._desk.drop(peer)

    # --- leaving

    async def _leave(self) -> None:
        leader, self._works_for = self._works_for, None
        with contextlib.suppress(SwarmError, TimeoutError):
            if leader is not None and leader != self._me:
                await self._others.ask(leader, self._worker.empty_handed(), LEAVE_S)
