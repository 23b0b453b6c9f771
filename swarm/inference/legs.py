"""The routes that one session uses at a time.

A hop that is lost is replaced: a new epoch begins around it, and the hops that stay keep their sequences. If only no answer comes
(`watch.py`), another leg is opened beside the first. The session keeps the leg that answers first; the others end. A slow node is not
blamed; a node that keeps steps delays a session by `late_s` only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from protocols import tensors
from protocols.defaults import WINDOW_BYTES
from protocols.errors import DeadlineError, InternalError, NonsenseError, NoRouteError, SwarmError
from protocols.identity import Identity
from protocols.ids import PeerId, Span, short_peer
from protocols.inference import Fork, Reply, Route, Step
from protocols.units import ENDS, Unit
from swarm import trace, waiting
from swarm.inference import hearsay, suspicion
from swarm.inference.hearsay import Refusal
from swarm.inference.leg import Leg, Loss
from swarm.inference.pending import Pending
from swarm.inference.requests import SessionConfig
from swarm.inference.retained import Retained
from swarm.inference.step_waits import StepWaits
from swarm.inference.suspicion import Kind, Verdict
from swarm.routing.router import Router
from swarm.streams.links import Links

log = logging.getLogger(__name__)

REFUSED_S = 2.0
"""How long, in seconds, the client looks for another peer after one has refused the request."""

INQUIRY_S = 1.0
"""Longest wait, in seconds, for the answer of an accused hop, if another accusation comes before a reply."""

LINE_BYTES_S = 1e6
"""Least bytes a second at which a step, or the first part of a session's history, should reach a hop."""

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
        self.dtype: str | None = None
        self.rivals: list[Leg] = []
        """Legs beside the current one, the oldest first."""
        self._given_up: list[Leg] = []
        """Legs that were ended for others since the last reply."""
        self.replaced = 0
        self.pauses_s: list[float] = []
        self.losses: asyncio.Queue[tuple[Leg, Loss]] = asyncio.Queue()
        self.lost_at_s: float | None = None
        """When a hop was lost first since the last reply."""
        self.heard_s = 0.0
        """When the last step was sent, the last reply came, or the last route was opened."""
        self.is_over = False
        """It was closed, or has failed: no more repairs, and no more looks."""
        self.is_thin = False
        self.forked_places: set[tuple[PeerId, Span]] | None = None
        self._router, self._links, self._identity, self._config = router, links, identity, config
        self._now_s = router.clock.now_s
        self._waits, self._pending, self._on_reply = waits, pending, on_reply
        self._refusals: list[Refusal] = []
        """Since the last reply."""
        self._usual_ms = 0.0
        """What a decode step has taken, the longest ones most."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._inquiries: set[asyncio.Task[None]] = set()
        """Questions to hops that others say are lost, under way."""
        self._mending: asyncio.Task[None] | None = None
        self.current = self._new()

    @property
    def _needs(self) -> frozenset[Unit]:
        """What the first and the last hop must host beside their blocks."""
        return ENDS if self.is_thin else frozenset()

    def _new(self) -> Leg:
        def oldest() -> int:
            return min(self._pending.steps, default=self.retained.next_step)

        def on_loss(leg: Leg, loss: Loss) -> None:
            self.losses.put_nowait((leg, loss))

        router = self._router
        return Leg(
            self._links, self._identity, router.weights, self.retained, oldest, self._on_reply, on_loss, router.clock.unix_s
        )

    @property
    def silent_s(self) -> float:
        """Seconds since `heard_s`."""
        return self._now_s() - self.heard_s

    @property
    def is_repairing(self) -> bool:
        """A new route for the current leg is under way."""
        return self._mending is not None

    # --- the life of a session

    def begin_as(self, other: Legs) -> None:
        """As a fork of another session: its sequences, and the hops that may still hold them."""
        self.retained = self.current.down.retained = other.retained.fork()
        if (step := self.retained.next_step) > 0:
            self.current.fork = Fork(session=other.current.id, step=step)
            self.forked_places = {hop.place for hop in other.current.route}

    async def open(self) -> None:
        """Find a route and open it. NoRouteError or ModelMismatchError says why there is none."""
        self._waits.late(waiting.ROUTING)
        config = self._config
        route, self.dtype = await self._router.find(
            config.route_timeout_s,
            config.dtype,
            self.forked_places,
            needs=self._needs,
            blocks=config.blocks,
            on_wait=self._waits.late,
        )
        trace.mark("routed", self.current.id, 0)
        if not self.is_over:
            await self.current.install(route, self.dtype)  # losses wait until it is done: two routes never at once
        if self.is_over:  # closed in the meantime: what was opened since would stay at the hops for long
            self.current.let_go()
            return
        if not self.losses.qsize():
            self._waits.late(None)
        self.keep(self._repair())

    def keep(self, work: Coroutine[None, None, None], *kept: set[asyncio.Task[None]]) -> None:
        """Run it beside, until it ends or `stop`."""
        task = asyncio.create_task(work, name=f"way of {self.current}")
        for tasks in (self._tasks, *kept):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def stop(self) -> None:
        """No repairs and no looks any more."""
        self.is_over = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end(self, error: SwarmError) -> None:
        """The session has failed."""
        self.is_over = True
        self._pending.fail(error)

    async def close(self) -> None:
        """Say the last word on every wire; returns when the first hops have been told, or do not listen any more."""
        await asyncio.gather(*(wire.ended() for leg in (self.current, *self.rivals) for wire in leg.let_go()))

    # --- steps and replies

    def send(self, step: Step) -> None:
        """Retain a step and send it over every leg."""
        self.heard_s = self._now_s()
        self.retained.add(step)
        self.current.down.pump()
        for rival in self.rivals:
            rival.down.pump()

    def has(self, leg: Leg) -> bool:
        """Is it one of ours still?"""
        return leg is self.current or leg in self.rivals

    def answered(self, leg: Leg, num_tokens: int) -> None:
        """A reply that can be used, to a step of so many tokens, came over `leg`: it is the session's."""
        now_s = self._now_s()
        if leg.verdict is None:
            self._usual_ms = max((now_s - self.heard_s) * 1e3 / suspicion.work(num_tokens), 0.9 * self._usual_ms)
        self.heard_s = now_s
        if leg is not self.current:
            self._adopt(leg)
        if not leg.has_answered or leg.verdict is not None or self.lost_at_s is not None:
            self._is_well(leg, now_s)

    def _is_well(self, leg: Leg, now_s: float) -> None:
        """What was suspected, refused and lost is settled; those that were tried beside are not needed."""
        leg.has_answered, leg.verdict = True, None
        self._router.experience.answered(leg.route)
        self._refusals.clear()
        self._given_up.clear()
        while self.rivals:
            self.rivals.pop().let_go()
        if self.lost_at_s is not None:
            self.pauses_s.append(now_s - self.lost_at_s)
            self.lost_at_s = None

    def _adopt(self, winner: Leg) -> None:
        """A leg that was opened later answers first: those before it keep what they were sent, or are slow."""
        log.info("%s: answers first, %s ends", winner, self.current)
        for loser in (self.current, *self._given_up, *self.rivals[: self.rivals.index(winner)]):
            if loser.verdict is not None:
                self._blame(loser.route, loser.verdict)
        self.rivals.remove(winner)
        self.current.let_go()
        self.current = winner
        if self._mending is not None:
            self._mending.cancel()  # what it repairs is not needed any more
        self.replaced += 1

    def _blame(self, route: Route, verdict: Verdict) -> None:
        peers = [route[place].peer for place in verdict.places]
        if verdict.kind is Kind.BUSY:
            self._router.experience.suspect(peers[0])
        elif verdict.kind is Kind.TORN:
            self._router.experience.dispute(*peers)
        else:
            self._router.experience.failed(peers[0], DeadlineError(f"no answer comes through it: it {verdict.kind.value}"))

    def late_s(self) -> float:
        """Seconds after which the reply that is awaited is late."""
        awaited = self._pending.oldest()
        steps = suspicion.work(awaited.num_tokens if awaited else 0)
        expected_ms = max(self._usual_ms * steps, self._router.expected_ms(self.current.route, steps))
        sent_s = awaited.num_bytes / LINE_BYTES_S if awaited else 0.0
        replay_s = 0.0 if self.lost_at_s is None else self._replay_s()
        return suspicion.late_s(expected_ms, self._config.stall_s + sent_s + replay_s)

    def _replay_s(self) -> float:
        """Seconds until a new hop has the first part of the history (from then on it says that it is busy), and has computed all."""
        num_tokens = self.retained.num_tokens
        token_bytes = (self._config.hidden_size or 0) * tensors.ITEM_BYTES[self.dtype or "float32"]
        first_bytes = min(WINDOW_BYTES, max(self.retained.num_bytes, num_tokens * token_bytes))
        computed_s = self._router.expected_ms(self.current.route, suspicion.work(num_tokens)) / 1e3
        return min(suspicion.LONGEST_S, first_bytes / LINE_BYTES_S + computed_s)

    # --- losses

    async def _repair(self) -> None:
        """Answer every loss with a new route, for as long as the session lives."""
        while not self.is_over:
            leg, loss = await self.losses.get()
            if loss.epoch != leg.epoch or loss.index >= len(leg.route):
                continue
            if leg in self.rivals:  # there is no need to mend it
                self.rivals.remove(leg)
                self._note(leg, loss)
                leg.let_go()
            elif leg is self.current:
                self._mending = asyncio.create_task(self._mend(leg, loss), name=f"repair of {leg}")
                try:
                    await asyncio.wait((self._mending,))
                finally:
                    self._mending.cancel()
                    self._mending = None

    async def _mend(self, leg: Leg, loss: Loss) -> None:
        try:
            await self._replace(leg, loss)
        except SwarmError as error:
            self.end(error)
        except Exception as error:  # else a caller that waits for a reply would wait for ever
            log.exception("%s: a repair failed by a fault of ours", leg)
            self.end(InternalError(f"the session could not be repaired: {type(error).__name__}; the log says more"))
        finally:
            self.heard_s = self._now_s()

    async def _replace(self, leg: Leg, loss: Loss) -> None:
        """Route around a lost hop. Raises if no peer is left within `route_timeout_s`, or if enough peers refuse the same."""
        hop, now_s = leg.route[loss.index], self._now_s()
        log.info("%s: hop %d (%s, blocks %s) is lost: %s", leg, loss.index, short_peer(hop.peer), hop.span, loss.cause)
        if self.lost_at_s is None or not self._pending.steps:  # while no caller waits for a reply, the route timeout does not run
            self.lost_at_s = now_s
        lasts_s = now_s - self.lost_at_s
        if loss.is_told and self._inquiries:  # news upon news: first hear what those say who were accused before
            await asyncio.wait(self._inquiries, timeout=INQUIRY_S)
        self._note(leg, loss)
        if not loss.cause.try_another_peer:
            self._refusals.append(Refusal(loss.cause, hearsay.sayers(leg.route, loss.index, loss.is_told)))
            if hearsay.is_agreed(self._refusals):
                raise self._refused(loss.cause)
        self._waits.late(waiting.replacing(hop.span))
        route = await self._another(leg, loss)
        if lasts_s > 2 * self._config.route_timeout_s:
            raise NoRouteError(f"hops were lost again and again for {lasts_s:.0f} s; the last one: {loss.cause}")
        self.replaced += 1
        self._waits.late(waiting.replaying(hop.span))
        assert self.dtype is not None
        await leg.install(route, self.dtype)

    async def _another(self, leg: Leg, loss: Loss) -> Route:
        """A route without the hop that is lost. Of those that refuse, each peer that may have made it up is avoided."""
        is_refusal, config = not loss.cause.try_another_peer, self._config
        gone = {loss.index, *loss.others}
        staying = {hop.place for place, hop in enumerate(leg.route) if place not in gone}
        try:
            route, _ = await self._router.find(
                min(REFUSED_S, config.route_timeout_s) if is_refusal else config.route_timeout_s, self.dtype, staying,
                needs=self._needs, blocks=config.blocks, on_wait=self._waits.late,
                avoiding=frozenset[PeerId]().union(*(refusal.sayers for refusal in self._refusals)) if is_refusal else (),
            )  # fmt: skip
        except NoRouteError:
            if is_refusal:
                raise self._refused(loss.cause) from None
            raise
        return route

    def _refused(self, cause: SwarmError) -> SwarmError:
        """The request may be at fault: those who refused it may be used for others, if there is no other peer."""
        for refusal in self._refusals:
            for peer in refusal.sayers:
                self._router.experience.absolve(peer)
                self._router.experience.suspect(peer)
        return cause

    def _note(self, leg: Leg, loss: Loss) -> None:
        """Whom this loss speaks against."""
        peer, now_s = leg.route[loss.index].peer, self._now_s()
        if isinstance(loss.cause, NonsenseError) and loss.index > 0:
            self._router.experience.dispute(peer, leg.route[loss.index - 1].peer)
        elif loss.others:
            for place in loss.others:
                self._router.experience.dispute(peer, leg.route[place].peer)
        else:
            was_accused = self._router.experience.suspects.strikes(peer, now_s) > 0
            self._router.experience.failed(peer, loss.cause)
            if loss.is_told and not was_accused:
                self.keep(self._ask_the_accused(leg, leg.route, loss), self._inquiries)

    async def _ask_the_accused(self, leg: Leg, route: Route, loss: Loss) -> None:
        """A hop above says that another is lost. If that one answers, and has not given up, it is one word against the other."""
        words = await leg.ask(loss.index + 1, route)
        if suspicion.has_said_it_itself(words[loss.index]):
            return
        accused = route[loss.index].peer
        log.info("%s: %s answers, though a hop above it says that it is lost", leg, short_peer(accused))
        self._router.experience.absolve(accused)
        for place in suspicion.accusers(words, loss.index):
            self._router.experience.dispute(route[place].peer, accused)

    # --- beside

    @property
    def is_full(self) -> bool:
        """No further leg is tried beside without giving one up."""
        return len(self.rivals) >= MAX_RIVALS

    def _give_up(self, rival: Leg) -> None:
        self.rivals.remove(rival)
        self._given_up.append(rival)
        rival.let_go()

    async def try_beside(self) -> None:
        """Open another leg, on a route that avoids each peer that may keep our steps; nothing if there is no such route."""
        legs = (self.current, *self.rivals, *self._given_up)
        stuck = {leg.route[place].peer for leg in legs if leg.verdict for place in leg.verdict.places}
        config = self._config
        try:
            route, _ = await self._router.find(0.0, self.dtype, (), needs=self._needs, blocks=config.blocks, avoiding=stuck)
        except SwarmError as error:
            log.info("%s: no answer comes, and there is no other way: %s", self.current, error)
            return
        is_answered = self.current.verdict is None  # while we looked for a route
        if self.is_over or is_answered:
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
        assert self.dtype is not None
        self.keep(rival.install(route, self.dtype))
