"""One session at one node, as an actor.

It takes messages one by one and decides which belong to the session now, and what a loss means.

    from above   Open, Step, History, Reroute, Close         Expect, HopLost   go up
    from below   Expect, HopLost                             Open, Step, …     go down
    client       Attach (at the last hop)                    Reply, HopLost    go to the client

Each of these boundaries is an object: `upstream.py`, `answers.py`, and `../downstream.py` (`successor.py` connects it).
`sequences.py` computes each step once and passes its output on.

Everything that changes the session happens in `run`, in the order of the inbox, so there are no locks. Exception: `Close` is
handled immediately, unless an `Open` is still queued.
A death below is told to the client, which sends a new route. If the hop above is lost, other peers report it; this one keeps the session
for `resume_s` and waits for a new Open. Where a hop cannot go on (no memory, or its retained history was dropped),
it forgets everything and says Expect(0), or reports itself lost; it never answers with other tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.errors import InternalError, OverloadedError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId, SessionId, Span, short_peer
from protocols.inference import Attach, Close, Expect, Fork, History, HopLost, Message, Open, Reroute, Step
from protocols.progress import Progress
from swarm import faults
from swarm.inference.downstream import Downstream
from swarm.inference.hop.answers import Answers
from swarm.inference.hop.compute import SessionCompute
from swarm.inference.hop.events import Event, Lost, dismiss, end
from swarm.inference.hop.pace import Pace
from swarm.inference.hop.place import Place
from swarm.inference.hop.sequences import Sequences
from swarm.inference.hop.successor import Successor
from swarm.inference.hop.upstream import Upstream
from swarm.streams.inbox import Inbox, weight
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream

log = logging.getLogger(__name__)

INBOX_EVENTS, INBOX_BYTES = 4 * WINDOW_STEPS, 2 * WINDOW_BYTES

PART_S = 20.0
"""Longest time, in seconds, for which a hop that waits for the next part of a history (8 MB) says that it is busy."""

Key = tuple[PeerId, SessionId, Span]
"""(client, session, blocks): who may have it, which it is, and what it runs."""


class Hop:
    """One session's state at this node. Created by the first Open or Attach, ended by Close or by time (`hops.py`)."""

    def __init__(
        self,
        place: Place,
        dtype: str,
        compute: SessionCompute,
        links: Links,
        source: Callable[[Key], Sequences | None],
        now_s: Callable[[], float],
        pace: Pace,
    ) -> None:
        """source: the sequences of another session, of which this one may be a fork. now_s: of the node's `Clock`. pace: its own."""
        self._now_s = now_s
        self.place = place
        """Its blocks are the same in every epoch."""
        self.last_active_s = self._now_s()
        self.is_closed = False
        self._source = source
        self._fork: Fork | None = None
        """The session that this one is a fork of; the hop below is told as well."""
        self._inbox: Inbox[Event] = Inbox(INBOX_EVENTS, INBOX_BYTES)
        self.up = Upstream(self.last_active_s)
        self._answers = Answers()
        self.down = Downstream(place.grant.session)
        self.sequences = Sequences(compute, self.up, self.down, self._answers)
        self._successor = Successor(links, dtype, self.down, self.put, self.lose)
        self._pace = pace
        self._last_word: Close | None = None
        """What the hop below is told at the end; None where this node leaves and the session goes on without it."""
        self._opens_waiting = 0
        """In the inbox: a Close of the hop above that they replace must not overtake them."""

    @property
    def held_bytes(self) -> int:
        """All activations that this session keeps alive here: retained, waiting, coming in as a history, and its last replies."""
        loading = 0 if self.sequences.loading is None else self.sequences.loading.num_bytes
        return self.down.retained.num_bytes + self._inbox.num_bytes + loading + self._answers.num_bytes

    @property
    def progress(self) -> Progress:
        """How far this session is here, for its client."""
        sequences, own_epoch = self.sequences, self.place.grant.epoch
        epoch = max(own_epoch, self._pace.awaited)
        is_paced = epoch > own_epoch  # nothing was sent in that epoch yet
        is_loading = sequences.loading is not None and self._now_s() - self.last_active_s < PART_S
        attached = sequences.next_step if self._answers.wire is not None else 0
        return Progress(
            epoch=epoch,
            received=max(self.up.received, sequences.next_step),
            computed=sequences.next_step,
            sent=0 if is_paced else attached if self.place.is_last else self.down.num_sent,
            is_busy=sequences.is_computing or is_loading or is_paced or self._successor.is_dialling,
            has_given_up=sequences.has_given_up,
            lost=self.up.first_told(self.place.index),
        )

    def __str__(self) -> str:
        return str(self.place)

    # --- the outside puts events in

    async def put(self, wire: MessageStream | None, message: Message) -> None:
        """A message came over `wire`; waits while the inbox is full, which slows the sender down."""
        if isinstance(message, Step) and message.epoch == self.place.grant.epoch:
            self.up.receive(message.step, self.sequences.next_step)
        elif isinstance(message, Open | Reroute):
            await self._pace.turn(message.grant.epoch)
            self.up.received = 0  # what had come over an older wire, or in an older epoch, may be sent again
        if self.is_closed:
            if wire is not self.down.wire:  # the hop below gets our last word before its wire ends
                end(wire)
        elif isinstance(message, Close) and not self._opens_waiting and (wire is None or wire is self.up.wire):
            await self._close(message)
        else:
            self._opens_waiting += isinstance(message, Open)
            await self._inbox.put((wire, message), weight(message))

    async def _close(self, message: Close) -> None:
        """The session is over: at once, whatever waits before this message or is being computed."""
        self.is_closed = True
        self._last_word = message if message.below else None
        self._successor.stop()
        self.sequences.end(message.keep_s if message.below else 0)
        if not len(self._inbox):
            await self._inbox.put((None, message))  # wakes `run`

    async def lose(self, wire: MessageStream | None, cause: SwarmError | None) -> None:
        """`wire` is gone, or the hop below could not be reached."""
        if not self.is_closed:
            await self._inbox.put((None, Lost(wire, cause, self.place.grant.epoch)))

    async def run(self) -> None:
        """Take events in order until the session closes. The caller owns this task; afterwards every sequence is freed, or kept."""
        try:
            while not self.is_closed:
                wire, message = await self._inbox.get()
                if self.is_closed:
                    dismiss(wire, message)
                else:
                    await self._handle(wire, message)
        finally:
            self.is_closed = True
            await self._release()

    async def _handle(self, wire: MessageStream | None, message: Message | Lost) -> None:
        self.last_active_s = self._now_s()
        is_above, is_below = wire is not None and wire is self.up.wire, wire is not None and wire is self.down.wire
        match message:
            case Open():
                self._opens_waiting -= 1
                await self._on_route(wire, message)
            case Attach():
                self._answers.attach(wire, message)
            case Lost():
                await self._on_lost(message)
            case Close() if is_above or wire is None:  # that came after an Open that waited; None: its time is over
                await self._close(message)
            case Reroute() if is_above:
                await self._on_route(wire, message)
            case Step() if is_above and message.epoch == self.place.grant.epoch:
                await self.sequences.take_step(message, self.place)
            case History() if is_above and message.epoch == self.place.grant.epoch:
                await self.sequences.take_history(message, self.place)
            case Expect() if is_below:
                await self._on_expect(message)
            case HopLost() if is_below and message.index > self.place.index and message.epoch == self.place.grant.epoch:
                self.up.tell(message, self._answers.wire)
            case _:  # a hop that a new route left out has nothing to say any more
                log.debug("%s: a %s that does not belong here was dropped", self, type(message).__name__)

    # --- the route

    async def _on_route(self, wire: MessageStream | None, message: Open | Reroute) -> None:
        before = self.place.grant
        if message.grant.epoch < before.epoch:
            if wire is not self.up.wire:
                end(wire)
            return
        if isinstance(message, Open):
            self.up.connect(wire)
        self.place = replace(self.place, grant=message.grant, index=message.index)
        self.sequences.has_given_up = False
        self.up.begin_route()
        if isinstance(message, Open) and message.fork is not None:
            self._fork = message.fork
            await self._begin_with(message.fork)
        faults.point("opened", self.sequences.next_step)
        self.up.expect(self.place.grant, self.sequences.next_step)
        self._successor.follow(before, self.place, self._fork)

    async def _begin_with(self, fork: Fork) -> None:
        """Copy the sequences of the session that this one is a fork of, if they are here."""
        if (source := self._source((self.place.grant.client, fork.session, self.place.span))) is not None:
            await self.sequences.fork(source, fork, self.place)

    async def _on_lost(self, lost: Lost) -> None:
        if lost.wire is not None and lost.wire is self._answers.wire:
            self._answers.wire = None
            if not self.up.was_opened:  # an Attach that came after the session's Close, or in vain: there is nothing to wait for
                self.is_closed = True
        elif lost.wire is not None and lost.wire is self.up.wire:
            self.up.drop(self._now_s())
            log.info("%s: the hop above left (%s); kept for a while", self, lost.cause or "stream ended")
        elif lost.wire is self.down.wire and lost.epoch == self.place.grant.epoch:
            self.down.drop()
            if lost.wire is None and isinstance(lost.cause, OverloadedError | InternalError):  # ours: the hop below was not asked
                await self.sequences.give_up(lost.cause, self.place)
            else:
                self._lost_below(lost.cause or PeerUnreachableError("the stream ended without a close"))

    async def _on_expect(self, expect: Expect) -> None:
        self.down.expect(expect)
        if self.down.is_insatiable:
            self.down.end(None)
            self._lost_below(PeerUnreachableError("it asks for the whole history again and again"))
        elif self.down.is_starved:
            log.info("%s: the hop below needs the history that was dropped here: asking for a replay from above", self)
            await self.sequences.forget()
            self.up.expect(self.place.grant, self.sequences.next_step)

    def _lost_below(self, cause: SwarmError) -> None:
        below, route = self.place.index + 1, self.place.grant.route
        if below < len(route):
            log.info("%s: hop %d (%s) is lost: %s", self, below, short_peer(route[below].peer), cause)
            self.up.tell(self.place.lost(below, cause), self._answers.wire)

    # --- the end

    async def _release(self) -> None:
        self._successor.stop()
        self.down.end(self._last_word)
        end(self.up.wire)
        end(self._answers.wire)
        await self._inbox.drain(lambda event: dismiss(*event))  # streams whose first message came too late end
        await self.sequences.release()
