"""One session at one node, as an actor.

It takes messages one by one, computes each step once, and passes its output on.

    from above   Open, Step, History, Reroute, Close         Expect, HopLost   go up
    from below   Expect, HopLost                             Open, Step, …     go down
    client       Attach (at the last hop)                    Reply, HopLost    go to the client

Each of these boundaries is an object: `upstream.py`, `downstream.py`, `answers.py`.

Everything that changes the session happens in `run`, in the order of the inbox, so there are no locks. Exception: `Close` is
handled immediately, unless an `Open` is still queued.
A death below is told to the client, which sends a new route. If the hop above is lost, other peers report it; this one keeps the session
for `resume_s` and waits for a new Open. Where a hop cannot go on (no memory, or its retained history was dropped),
it forgets everything and says Expect(0), or reports itself lost; it never answers with other tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from protocols import tensors
from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.errors import InternalError, OverloadedError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId, SessionId, Span, short, short_peer
from protocols.inference import (
    Attach,
    Close,
    Expect,
    Fork,
    Grant,
    History,
    HopLost,
    Message,
    Open,
    Reroute,
    Step,
)
from protocols.progress import Progress
from swarm import faults, trace
from swarm.inference import grants, process_step
from swarm.inference.answers import Answers
from swarm.inference.compute import SessionCompute
from swarm.inference.downstream import Downstream
from swarm.inference.events import Event, Lost, dismiss, end
from swarm.inference.grants import Served
from swarm.inference.pace import Pace
from swarm.inference.pieces import PieceRow
from swarm.inference.retained import Loading
from swarm.inference.successor import Successor
from swarm.inference.upstream import Upstream
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
        grant: Grant,
        index: int,
        served: Served,
        compute: SessionCompute,
        links: Links,
        others: Mapping[Key, Hop],
        now_s: Callable[[], float],
        pace: Pace,
    ) -> None:
        """others: all sessions at this node, of which this one may be a fork. now_s: of the node's `Clock`. pace: its own."""
        self._now_s = now_s
        self.grant, self.index, self._served = grant, index, served
        self.next_step = 0
        self._received = 0
        """Steps that have come, one after the other, since the last Open, Reroute or history."""
        self.last_active_s = self._now_s()
        self.is_closed = False
        self._compute, self._others = compute, others
        self._fork: Fork | None = None
        """The session that this one is a fork of; the hop below is told as well."""
        self._is_computing = False
        self._inbox: Inbox[Event] = Inbox(INBOX_EVENTS, INBOX_BYTES)
        self._up = Upstream(self.last_active_s)
        self._answers = Answers()
        self._down = Downstream(grant.session)
        self._loading: Loading | None = None
        self._successor = Successor(links, served.dtype, self._put_from_below, self.lose, self._on_wire_below)
        self._pace = pace
        self._last_word: Close | None = None
        """What the hop below is told at the end; None where this node leaves and the session goes on without it."""
        self._has_given_up = False
        """We reported ourselves lost: whatever is still in flight for us is void until a new route wants us again."""
        self._opens_waiting = 0
        """In the inbox: a Close of the hop above that they replace must not overtake them."""

    @property
    def span(self) -> Span:
        """The blocks that it runs: what this node hosts, or a part of that. The same in every epoch."""
        return self.grant.route[self.index].span

    @property
    def is_last(self) -> bool:
        return self.index == len(self.grant.route) - 1

    @property
    def orphaned_since_s(self) -> float | None:
        """When the hop above left, by the node's clock; None while there is one."""
        return self._up.orphaned_since_s

    @property
    def was_opened(self) -> bool:
        """There has been a hop above, and not only a client that listens."""
        return self._up.was_opened

    @property
    def retained_bytes(self) -> int:
        """What `drop_retained` may give back, and the window."""
        return self._down.retained.num_bytes

    @property
    def held_bytes(self) -> int:
        """All activations that this session keeps alive here: retained, waiting, coming in as a history, and its last replies."""
        loading = 0 if self._loading is None else self._loading.num_bytes
        return self.retained_bytes + self._inbox.num_bytes + loading + self._answers.num_bytes

    @property
    def progress(self) -> Progress:
        """How far this session is here, for its client."""
        epoch = max(self.grant.epoch, self._pace.awaited)
        is_paced = epoch > self.grant.epoch  # nothing was sent in that epoch yet
        is_loading = self._loading is not None and self._now_s() - self.last_active_s < PART_S
        attached = self.next_step if self._answers.wire is not None else 0
        return Progress(
            epoch=epoch,
            received=max(self._received, self.next_step),
            computed=self.next_step,
            sent=0 if is_paced else attached if self.is_last else self._down.num_sent,
            is_busy=self._is_computing or is_loading or is_paced or self._successor.is_dialling,
            has_given_up=self._has_given_up,
            lost=self._up.first_told(self.index),
        )

    def __str__(self) -> str:
        return f"session {short(self.grant.session)} hop {self.index} epoch {self.grant.epoch}"

    # --- the outside puts events in

    async def put(self, wire: MessageStream | None, message: Message) -> None:
        """A message came over `wire`; waits while the inbox is full, which slows the sender down."""
        if isinstance(message, Step) and message.epoch == self.grant.epoch:
            next_one = max(self._received, self.next_step)
            self._received = next_one + (message.step == next_one)  # else the hop above has dropped one, or made one up
        elif isinstance(message, Open | Reroute):
            await self._pace.turn(message.grant.epoch)
            self._received = 0  # what had come over an older wire, or in an older epoch, may be sent again
        if self.is_closed:
            end(wire)
        elif isinstance(message, Close) and not self._opens_waiting and (wire is None or wire is self._up.wire):
            await self._close(message)
        else:
            self._opens_waiting += isinstance(message, Open)
            await self._inbox.put((wire, message), weight(message))

    async def _close(self, message: Close) -> None:
        """The session is over: at once, whatever waits before this message or is being computed."""
        self.is_closed = True
        self._last_word = message if message.below else None
        self._compute.abandon()
        if not len(self._inbox):
            await self._inbox.put((None, message))  # wakes `run`

    async def _put_from_below(self, wire: MessageStream, message: Message) -> None:
        """The hop below may say what it wants and who is lost. Anything else is not for it to say, and was not checked."""
        if not isinstance(message, Expect | HopLost):
            raise PeerUnreachableError(f"the hop below sent {type(message).__name__}, which does not belong on its stream")
        await self.put(wire, message)

    async def lose(self, wire: MessageStream | None, cause: SwarmError | None) -> None:
        """`wire` is gone, or the hop below could not be reached."""
        if not self.is_closed:
            await self._inbox.put((None, Lost(wire, cause, self.grant.epoch)))

    async def run(self) -> None:
        """Take events in order until the session closes. The caller owns this task; afterwards every sequence is freed."""
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
        is_above, is_below = wire is not None and wire is self._up.wire, wire is not None and wire is self._down.wire
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
            case Step() if is_above:
                await self._on_step(message)
            case History() if is_above:
                await self._on_history(message)
            case Expect() if is_below:
                await self._on_expect(message)
            case HopLost() if is_below and message.index > self.index and message.epoch == self.grant.epoch:
                self._up.tell(message, self._answers.wire)
            case _:  # a hop that a new route left out has nothing to say any more
                log.debug("%s: a %s that does not belong here was dropped", self, type(message).__name__)

    # --- the route

    async def _on_route(self, wire: MessageStream | None, message: Open | Reroute) -> None:
        if message.grant.epoch < self.grant.epoch:
            if wire is not self._up.wire:
                end(wire)
            return
        if isinstance(message, Open):
            self._up.connect(wire)
        previous, self.grant, self.index = self.grant, message.grant, message.index
        self._has_given_up = False
        self._up.begin_route()
        if isinstance(message, Open) and message.fork is not None:
            self._fork = message.fork
            await self._begin_with(message.fork)
        faults.point("opened", self.next_step)
        self._up.expect(self.grant, self.next_step)
        if self.is_last:
            return
        stays = self._down.wire is not None and self._down.wire.is_open and grants.keeps_below(previous, self.grant, self.index)
        if stays and previous.epoch < self.grant.epoch:
            self._down.reroute(self.grant, self.index + 1)
        elif not stays and self._successor.is_new(self.grant.epoch):
            self._down.end(Close(session=self.grant.session, below=False))
            self._successor.dial(self.grant, self.index + 1, self._fork)

    async def _begin_with(self, fork: Fork) -> None:
        """Copy the sequences of the session that this one is a fork of, if it is here and has not gone on; else the history is sent."""
        source = self._others.get((self.grant.client, fork.session, self.span))
        if self.next_step or source is None or source.is_last != self.is_last or not source.is_at_rest(fork.step):
            return
        try:
            await self._compute.fork(source._compute)
        except SwarmError as error:
            log.info("%s: the sequences of session %s cannot be copied: %s", self, short(fork.session), error)
            return
        if not source.is_at_rest(fork.step):  # they may be those of a later step
            await self._compute.clear()
            return
        self.next_step = fork.step
        if self.is_last:
            self._down.retained.load(fork.step, [])
        else:
            self._down.retained = source._down.retained.fork()

    def is_at_rest(self, step: int) -> bool:
        """Are the sequences what they were before `step`, and not about to change?"""
        is_busy = self._is_computing or self._loading is not None or self._has_given_up or self.is_closed
        return self.next_step == step and not is_busy

    async def _on_wire_below(self, wire: MessageStream, epoch: int) -> None:
        if epoch == self.grant.epoch and not self.is_closed:
            self._down.connect(wire, epoch)
        else:
            await wire.close()

    async def _on_lost(self, lost: Lost) -> None:
        if lost.wire is not None and lost.wire is self._answers.wire:
            self._answers.wire = None
            if not self._up.was_opened:  # an Attach that came after the session's Close, or in vain: there is nothing to wait for
                self.is_closed = True
        elif lost.wire is not None and lost.wire is self._up.wire:
            self._up.drop(self._now_s())
            log.info("%s: the hop above left (%s); kept for a while", self, lost.cause or "stream ended")
        elif lost.wire is self._down.wire and lost.epoch == self.grant.epoch:
            self._down.drop()
            if lost.wire is None and isinstance(lost.cause, OverloadedError | InternalError):  # ours: the hop below was not asked
                await self._give_up(lost.cause)
            else:
                self._lost_below(lost.cause or PeerUnreachableError("the stream ended without a close"))

    async def _on_expect(self, expect: Expect) -> None:
        self._down.expect(expect)
        if self._down.is_insatiable:
            self._down.end(None)
            self._lost_below(PeerUnreachableError("it asks for the whole history again and again"))
        elif self._down.is_starved:
            log.info("%s: the hop below needs the history that was dropped here: asking for a replay from above", self)
            await self._forget()
            self._up.expect(self.grant, self.next_step)

    def _lost_below(self, cause: SwarmError) -> None:
        below = self.index + 1
        if below < len(self.grant.route):
            log.info("%s: hop %d (%s) is lost: %s", self, below, short_peer(self.grant.route[below].peer), cause)
            self._report(below, cause)

    def _report(self, index: int, cause: SwarmError) -> None:
        lost = HopLost(session=self.grant.session, epoch=self.grant.epoch, index=index, code=cause.code, message=str(cause))
        self._up.tell(lost, self._answers.wire)

    # --- steps

    async def _on_step(self, step: Step) -> None:
        if step.epoch != self.grant.epoch or self._has_given_up:
            return
        if step.step > self.next_step:
            if not self._up.is_waiting:
                self._up.expect(self.grant, self.next_step)
        elif step.step < self.next_step:
            self._repeat(step.step)
        else:
            if self._loading is not None:  # a history broke off, and the hop above now begins with step 0
                await self._forget()
            await self._advance(step)

    def _repeat(self, number: int) -> None:
        if self.is_last:
            self._answers.repeat(number)
        else:
            self._down.resend(number)

    async def _advance(self, step: Step) -> None:
        """Compute the step that we waited for, once, and pass its output on."""
        self._up.is_waiting = False
        faults.point("before_compute", step.step)
        trace.mark("received", step.session, step.step, step.payload.num_bytes)
        started = time.perf_counter()
        self._is_computing = True
        try:
            output = await process_step.process_step(self._compute, step, self._place())
        except SwarmError as error:
            await self._give_up(error)
            return
        finally:
            self._is_computing = False
        faults.point("after_compute", step.step)
        trace.mark("computed", step.session, step.step, output.values.num_bytes)
        self.next_step += 1
        spent_ms = (time.perf_counter() - started) * 1e3
        if self.is_last:
            self._answers.add(process_step.reply_to(step, output, spent_ms))
        else:
            budget_ms = max(0, step.budget_ms - round(spent_ms))
            self._down.send(replace(step, spec=step.spec.below(), payload=output.values, budget_ms=budget_ms))

    def _place(self) -> process_step.Place:
        return process_step.place_of(self.grant.route, self.index, self._served.num_blocks)

    async def _give_up(self, error: SwarmError) -> None:
        """We cannot compute this session any further: report ourselves lost and let the client choose another."""
        if self.is_closed:
            return
        log.info("%s: gives up: %s", self, error)
        self._has_given_up = True
        # first of all: freeing sequences waits for the forward that runs, and the client need not
        self._report(self.index, error)
        await self._forget()

    async def _forget(self) -> None:
        await self._compute.clear()
        self.next_step, self._received, self._loading = 0, 0, None
        self._answers.clear()
        self._down.retained.load(0, [])

    # --- replay

    async def _on_history(self, history: History) -> None:
        """Start anew from the sequences' inputs before step `base`; our outputs become our own retained history."""
        if history.epoch != self.grant.epoch or self._has_given_up:
            return
        if history.part == 0:
            await self._forget()
            self._loading = Loading(history.base, history.parts, [PieceRow() for _ in history.counts])
        if self._loading is None or not self._loading.is_next(history):
            if not self._up.is_waiting:
                await self._forget()
                self._up.expect(self.grant, self.next_step)
            return
        self._up.is_waiting = False
        faults.point("before_history", history.base)
        self._is_computing = True
        try:
            output = (await process_step.process_step(self._compute, history, self._place())).values
        except SwarmError as error:
            await self._give_up(error)
            return
        finally:
            self._is_computing = False
        self._loading.take(history, None if self.is_last else output)
        if self._loading.is_complete:
            self.next_step = history.base
            self._down.retained.load(history.base, [] if self.is_last else self._loading.rows, tensors.cut(output, 0, 0))
            self._loading = None
            self._down.pump()
        faults.point("after_history", history.base)

    def drop_retained(self) -> None:
        """Give back what we retain (the node's bound is reached): a death below then costs a replay from above."""
        if self._down.retained.has_history:
            log.info("%s: %d retained bytes dropped: the node's limit is reached", self, self.retained_bytes)
            self._down.retained.drop_history()

    async def _release(self) -> None:
        self._successor.stop()
        self._down.end(self._last_word)
        end(self._up.wire)
        end(self._answers.wire)
        await self._empty_inbox()
        await self._compute.clear()

    async def _empty_inbox(self) -> None:
        """End the streams whose first message came too late, and wake the senders that wait to put."""
        while len(self._inbox):
            dismiss(*self._inbox.get_nowait())
            await asyncio.sleep(0)  # one that waits may put now
