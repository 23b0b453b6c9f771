"""Hands out the micro-batches of a version, at the coordinating trainer.

Every trainer says in each request what it has done and what it still computes, so a request or an answer that is lost costs nothing. Leases
come back if a trainer drops them, is silent, cannot be reached, or takes several times as long as others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection

from protocols.ids import PeerId
from protocols.leases import MAX_FINISHED, MAX_LEASED, Done, Finished, LeaseAnswer, LeaseRequest
from swarm.clock import Clock
from swarm.training.arrivals import Arrivals
from swarm.training.leases import Leases

SILENT_S = 6.0
"""Seconds without a request after which a trainer counts as gone; one that has micro-batches in hand asks every `worker.BEAT_S`."""

GRACE_S = 1.0
"""Seconds in which trainers tell a new coordinator what they have in hand, before that is leased to others."""

WAITS_S = 1.0
"""Longest wait of a request for which there is no micro-batch yet."""

LEASE_PASSES, LEAST_LEASE_S = 4.0, 30.0
"""A lease lasts so many times as long as a micro-batch takes at most by past ones, and at least so many seconds."""


class LeaseDesk:
    """All methods belong to one event loop."""

    def __init__(self, me: PeerId, clock: Clock, window: Callable[[], int]) -> None:
        """window: micro-batches that all trainers together should have under way."""
        self._me, self._clock, self._window = me, clock, window
        self.version = 0
        self._table, self._done, self._again = Leases((), LEAST_LEASE_S), dict[int, Done](), set[int]()
        self._is_open, self._opens_s, self._awaited = False, 0.0, set[PeerId]()
        self._heard: dict[PeerId, float] = {}
        self._shown: dict[PeerId, int] = {}
        self._finished: deque[Finished] = deque(maxlen=MAX_FINISHED)
        self._arrivals, self._changed = Arrivals(), asyncio.Event()

    # --- the coordinator's side

    def begin(self, version: int, indices: Collection[int], *, is_again: bool, awaited: Collection[PeerId] = ()) -> None:
        """Hand out these indices of this version. is_again: some stages may hold some of them. awaited: trainers that may have some in
        hand, from another coordinator: they are heard first, or GRACE_S pass."""
        lease_s = max(LEAST_LEASE_S, LEASE_PASSES * (self._arrivals.limit_s() or 0.0))
        self.version, self._table, self._done = version, Leases(indices, lease_s), {}
        self._again = set(indices) if is_again else set()
        self._awaited, self._opens_s, self._is_open = set(awaited), self._clock.now_s() + GRACE_S, True
        while self._finished and self._finished[-1].version > version:  # the run has gone back
            self._finished.pop()
        self._tell()

    def redo(self, indices: Collection[int]) -> None:
        """No sum has these any more."""
        for index in indices:
            self._give_back(index)
        self._tell()

    def finish(self, finished: Finished) -> None:
        """Tell all trainers; nothing is handed out until `begin`."""
        self._finished.append(finished)
        self._is_open = False
        self._tell()

    def rest(self) -> None:
        """Hand out nothing until `begin`: this trainer does not coordinate yet, or not any more."""
        self._is_open = False
        self._heard.clear()
        self._shown.clear()
        self._finished.clear()

    def drop(self, trainer: PeerId) -> None:
        """It does not answer any more."""
        self._heard.pop(trainer, None)
        self._awaited.discard(trainer)
        for index in self._table.drop(trainer):
            self._again.add(index)
        self._tell()

    async def all_done(self) -> None:
        """Return once every index is reported."""
        while not self._table.is_done:
            self._look_for_silent()
            await self._wait(0.5)

    async def all_told(self, version: int, timeout_s: float) -> None:
        """Return once all other trainers know that this version is finished, or the time is over."""
        ends_s = self._clock.now_s() + timeout_s
        while self._clock.now_s() < ends_s and any(
            self._shown.get(peer, 0) < version for peer in self.trainers if peer != self._me
        ):
            self._look_for_silent()
            await self._wait(0.1)

    @property
    def trainers(self) -> frozenset[PeerId]:
        """Those that have asked and count as alive."""
        return frozenset(self._heard)

    @property
    def loss_sum(self) -> float:
        """Nats, of the micro-batches of this version that were reported here."""
        return sum(one.loss_sum for one in self._done.values())

    @property
    def num_targets(self) -> int:
        """Of the same micro-batches."""
        return sum(one.num_targets for one in self._done.values())

    @property
    def num_bytes(self) -> int:
        """Between stages, of the same micro-batches."""
        return sum(one.num_bytes for one in self._done.values())

    # --- the trainers' side

    async def reply(self, peer: PeerId, request: LeaseRequest) -> LeaseAnswer:
        """As `answer`; a trainer that has nothing else to do waits here for up to WAITS_S."""
        ends_s = self._clock.now_s() + WAITS_S
        while True:
            answer = self.answer(peer, request)
            left_s = ends_s - self._clock.now_s()
            if answer.indices or answer.finished or request.running or not request.wanted or left_s <= 0:
                return answer
            await self._wait(left_s)

    def answer(self, peer: PeerId, request: LeaseRequest) -> LeaseAnswer:
        """Note what it has done and dropped, and give it more."""
        now_s = self._clock.now_s()
        self._heard[peer], self._shown[peer] = now_s, request.shown
        if self._is_open and request.version == self.version:
            self._note(peer, request, now_s)
        elif self._is_open:
            self._again.update(self._table.keep_only(peer, (), now_s))
        if peer in self._awaited:
            self._awaited.discard(peer)
            self._tell()
        indices = self._take(peer, request.wanted, now_s)
        return LeaseAnswer(
            coordinator=self._me, version=self.version, indices=indices, deadline_s=self._table.lease_s,
            is_again=not self._again.isdisjoint(indices),
            finished=tuple(one for one in self._finished if one.version > request.shown),
        )  # fmt: skip

    def _note(self, peer: PeerId, request: LeaseRequest, now_s: float) -> None:
        has_changed = False
        for done in request.done:
            lease = self._table.lease_of(done.index)
            if lease is not None and lease.trainer != peer:  # it is in other hands by now: those find it in the sums
                continue
            if lease is not None:
                self._arrivals.add(now_s - lease.since_s)
            has_changed |= self._done.setdefault(done.index, done) is done
            self._table.report(done.index)
        dropped = self._table.keep_only(peer, request.running, now_s)
        self._again.update(dropped)
        if has_changed or dropped:
            self._tell()

    def _take(self, peer: PeerId, wanted: int, now_s: float) -> tuple[int, ...]:
        if now_s >= self._opens_s:
            self._awaited.clear()
        if not self._is_open or self._awaited:
            return ()
        self._again.update(self._table.expire(now_s))
        share = max(2, -(-self._window() // max(1, len(self._heard))))
        count = min(wanted, min(share, MAX_LEASED) - len(self._table.held_by(peer)))
        return tuple(self._table.take(peer, count, now_s))

    # --- help

    def _give_back(self, index: int) -> None:
        self._table.give_back(index)
        self._done.pop(index, None)
        self._again.add(index)

    def _look_for_silent(self) -> None:
        silent_s = self._clock.now_s() - SILENT_S
        for peer in [peer for peer, heard_s in self._heard.items() if heard_s < silent_s]:
            self.drop(peer)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _wait(self, seconds: float) -> None:
        """For a change, at most so long."""
        left_s = self._opens_s - self._clock.now_s()
        if self._awaited and left_s > 0:
            seconds = min(seconds, left_s + 0.01)
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
