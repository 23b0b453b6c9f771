"""The routes that one session uses at a time.

A hop that is lost is replaced (`repair.py`): a new epoch begins around it, and the hops that stay keep their sequences. If only no answer
comes (`watch.py`), another leg is opened beside the first. The session keeps the leg that answers first; the others end. A slow node is
not blamed; a node that keeps steps delays a session by `late_s` only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from protocols.errors import InternalError, SwarmError, VersionGoneError
from protocols.identity import Identity
from protocols.inference import Fork, Reply, Step
from swarm import trace, waiting
from swarm.inference.client.accusations import Accusations
from swarm.inference.client.lateness import Lateness
from swarm.inference.client.leg import Leg, Loss
from swarm.inference.client.pending import Pending
from swarm.inference.client.repair import Repair
from swarm.inference.client.route_search import RouteSearch
from swarm.inference.client.step_waits import StepWaits
from swarm.inference.requests import SessionConfig
from swarm.inference.retained import Retained
from swarm.routing.router import Router
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

MAX_RIVALS = 3
"""Legs that are tried at once beside the first."""


class Legs:
    """All methods belong to one event loop. `pending` is told what ends the session."""

    def __init__(
        self,
        router: Router,
        links: Links,
        identity: Identity,
        config: SessionConfig,
        waits: StepWaits,
        pending: Pending,
        on_reply: Callable[[Leg, Reply], None],
    ) -> None:
        """on_reply: takes the reply that came over a leg."""
        self.retained = Retained()
        self.rivals: list[Leg] = []
        """Legs beside the current one, the oldest first."""
        self._given_up: list[Leg] = []
        """Legs that were ended for others since the last reply."""
        self.num_adopted = 0
        """Legs that answered before the current one, and took its place."""
        self.losses: asyncio.Queue[tuple[Leg, Loss]] = asyncio.Queue()
        self.is_over = False
        """It was closed, or has failed: no more repairs, and no more looks."""
        self.tasks = Tasks()
        self._router, self._links, self._identity, self._follows = router, links, identity, config.follow
        self._waits, self._pending, self._on_reply = waits, pending, on_reply
        now_s = router.clock.now_s
        self.search = RouteSearch(router, config, waits)
        self.lateness = Lateness(now_s, router.expected_ms, config, pending)
        self._accusations = Accusations(router.experience, now_s, self.tasks)
        self.repair = Repair(config, self.search, self._accusations, self.lateness, waits, self.keep, self._begin_anew)
        self.current = self._new()

    def _new(self) -> Leg:
        return Leg(
            self._links, self._identity, self.search.weights or self._router.weights, self.retained,
            lambda: min(self._pending.steps, default=self.retained.next_step),
            self._on_reply, lambda leg, loss: self.losses.put_nowait((leg, loss)), self._router.clock.unix_s,
        )  # fmt: skip

    def begin_as(self, other: Legs, tokens: int = 0) -> None:
        """As a fork of another session: its sequences, or so many first tokens of its only one, and the hops that may hold them."""
        self.retained = self.current.down.retained = other.retained.fork(tokens)
        self.search.weights, self.current.weights = other.search.weights, other.current.weights
        self.search.versions = [*other.search.versions]
        if (step := self.retained.next_step) > 0:
            self.current.fork = Fork(session=other.current.id, step=step, tokens=tokens)
            self.search.forked_places = {hop.place for hop in other.current.route}

    async def open(self) -> None:
        """Find a route and open it. NoRouteError, ModelMismatchError or VersionGoneError says why there is none."""
        self._waits.late(waiting.ROUTING)
        try:
            found = await self.search.first()
        except VersionGoneError as gone:  # of a fork: a new session takes the newest version
            await self._begin_anew(gone)
        else:
            self.current.weights = self.search.weights or self._router.weights
            trace.mark("routed", self.current.id, 0)
            if not self.is_over:
                await self.current.install(*found)  # losses wait until it is done: two routes never at once
        if self.is_over:  # closed in the meantime: what was opened since would stay at the hops for long
            self.current.let_go()
            return
        if not self.losses.qsize():
            self._waits.late(None)
        self.keep(self._answer_losses(), f"the repairs of {self.current}")

    async def _begin_anew(self, gone: VersionGoneError) -> None:
        """On the newest version, with all that was sent; raises `gone` if the caller has had answers, and did not ask to follow."""
        if self.search.versions and not self._follows:
            raise gone
        self._waits.late(waiting.FOLLOWING)
        found = await self.search.newest()
        if not self.is_over:
            self.search.weights = found.weights
            self.rivals.append(self.current)
            self._end_beside()
            self.current = self._new()
            await self.current.install(found.route, found.dtype)

    def keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a part of the session, until it ends or `stop`. What it raises ends the session: else its caller might wait for ever."""
        task = self.tasks.keep(work, name)
        task.add_done_callback(lambda ended: self.end(error) if (error := _failure(ended)) is not None else None)
        return task

    def end(self, error: SwarmError) -> None:
        """The session has failed."""
        self.is_over = True
        self._pending.fail(error)

    async def stop(self) -> None:
        """No repairs and no looks any more."""
        self.is_over = True
        await self.tasks.stop()

    def let_go(self, keep_s: int = 0) -> list[MessageStream]:
        """Say the last word on every wire; returns those on which it is still under way."""
        return [wire for leg in (self.current, *self.rivals) for wire in leg.let_go(keep_s)]

    # --- steps and replies

    def send(self, step: Step) -> None:
        """Retain a step and send it over every leg."""
        self.lateness.begin()
        self.retained.add(step)
        for leg in (self.current, *self.rivals):
            leg.down.pump()

    def has(self, leg: Leg) -> bool:
        """Is it one of ours still?"""
        return leg is self.current or leg in self.rivals

    def answered(self, leg: Leg, num_tokens: int) -> None:
        """A reply that can be used, to a step of so many tokens, came over `leg`: it is the session's."""
        self.lateness.answered(num_tokens, is_usual=leg.verdict is None)
        self.search.has_answered()
        if leg is not self.current:
            self._adopt(leg)
        if not leg.has_answered or leg.verdict is not None or self.lateness.outage.since_s is not None:
            self._is_well(leg)

    def _is_well(self, leg: Leg) -> None:
        """What was suspected, refused and lost is settled; those that were tried beside are not needed."""
        leg.has_answered, leg.verdict = True, None
        self._router.experience.answered(leg.route)
        self._end_beside()
        self.repair.settle()

    def _end_beside(self) -> None:
        self._given_up.clear()
        while self.rivals:
            self.rivals.pop().let_go()

    def _adopt(self, winner: Leg) -> None:
        """A leg that was opened later answers first: those before it keep what they were sent, or are slow."""
        log.info("%s: answers first, %s ends", winner, self.current)
        for loser in (self.current, *self._given_up, *self.rivals[: self.rivals.index(winner)]):
            if loser.verdict is not None:
                self._accusations.by_silence(loser.route, loser.verdict)
        self.rivals.remove(winner)
        self.current.let_go()
        self.current = winner
        self.repair.cancel()
        self.num_adopted += 1

    def late_s(self) -> float:
        """Seconds after which the reply that is awaited is late."""
        replayed = None if self.lateness.outage.since_s is None else self.retained
        return self.lateness.late_s(self.current.route, self.search.dtype, replayed)

    async def _answer_losses(self) -> None:
        """Answer every loss, for as long as the session lives."""
        while not self.is_over:
            leg, loss = await self.losses.get()
            if loss.epoch != leg.epoch or loss.index >= len(leg.route):
                continue
            if leg in self.rivals:  # there is no need to mend it
                self.rivals.remove(leg)
                self._accusations.by_loss(leg, loss)
                leg.let_go()
            elif leg is self.current:
                await self.repair.run(leg, loss)

    # --- beside

    @property
    def is_full(self) -> bool:
        """No further leg is tried beside without giving one up."""
        return len(self.rivals) >= MAX_RIVALS

    async def try_beside(self) -> None:
        """Open another leg, on a route that avoids each peer that may keep our steps; nothing if there is no such route."""
        legs = (self.current, *self.rivals, *self._given_up)
        stuck = {leg.route[place].peer for leg in legs if leg.verdict for place in leg.verdict.places}
        try:
            route, dtype = await self.search.beside(stuck)
        except SwarmError as error:
            log.info("%s: no answer comes, and there is no other way: %s", self.current, error)
            return
        if self.is_over or self.current.verdict is None:  # it was answered while we looked for a route
            return
        if stuck.intersection(hop.peer for hop in route):
            self._given_up.clear()  # all have been tried: begin again
            return
        if self.is_full:
            self._give_up(min(self.rivals, key=lambda leg: not leg.is_stuck))
        rival = self._new()
        self.rivals.append(rival)
        self._waits.late(waiting.BESIDE)
        log.info("%s: no answer comes; %s is tried beside it", self.current, rival)
        self.tasks.keep(rival.install(route, dtype), f"way of {rival}")

    def _give_up(self, rival: Leg) -> None:
        self.rivals.remove(rival)
        self._given_up.append(rival)
        rival.let_go()


def _failure(task: asyncio.Task[None]) -> SwarmError | None:
    """What a part of a session has raised; a fault of ours is logged."""
    if task.cancelled() or (error := task.exception()) is None:
        return None
    if isinstance(error, SwarmError):
        return error
    log.error("%s failed by a fault of ours", task.get_name(), exc_info=error)
    return InternalError(f"{task.get_name()} failed: {type(error).__name__}; the log says more")
