"""One leg of a session: its routes, one after the other.

It has a stream to the first and to the last hop of its route; each new route is a new epoch. Most sessions have one leg. Another is opened
beside it if no answer comes (`legs.py`); it has a session id of its own, so that a hop which is in both takes them for two sessions. All
legs of a session send the same retained steps.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from protocols.defaults import GRANT_LIFE_S
from protocols.errors import DeadlineError, PeerUnreachableError, SwarmError, UnauthenticatedError, from_wire, quoted
from protocols.identity import Identity
from protocols.ids import SessionId, short, short_peer
from protocols.inference import Close, Expect, Fork, Grant, Hop, HopLost, Message, Reply, Route
from protocols.progress import Progress
from protocols.weights_id import Weights
from swarm.inference.client import suspicion
from swarm.inference.client.suspicion import Kind, Verdict
from swarm.inference.downstream import Downstream
from swarm.inference.retained import Retained
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loss:
    """A hop of one epoch's route is gone, refuses, or keeps what it gets."""

    epoch: int
    index: int
    cause: SwarmError
    is_told: bool = False
    """A hop above it may have made this up; False: we have seen it, or the hop has said it to us itself."""
    others: tuple[int, ...] = ()
    """Hops that may be at fault just as well."""


class Leg:
    """Nothing here chooses a route. `on_reply` and `on_loss` are told what comes."""

    def __init__(
        self,
        links: Links,
        identity: Identity,
        weights: Weights,
        retained: Retained,
        oldest: Callable[[], int],
        on_reply: Callable[[Leg, Reply], None],
        on_loss: Callable[[Leg, Loss], None],
        unix_s: Callable[[], float],
    ) -> None:
        """retained: the steps of the session. oldest: the first step whose reply has not come. unix_s: from which grants live."""
        self.id = SessionId(secrets.token_bytes(16))
        self.route: Route = ()
        self.epoch = -1
        self.down = Downstream(self.id)
        self.down.retained = retained
        self.last: MessageStream | None = None
        self.fork: Fork | None = None
        """The session that this one is a fork of."""
        self.is_fork_taken = False
        """The first hop of the first route says that it begins with that."""
        self.has_answered = False
        self.verdict: Verdict | None = None
        """Where a step was stuck at the last look; None = no look since an answer came."""
        self.num_found = 0
        """Looks one after the other with that verdict."""
        self.weights = weights
        """What every hop computes with."""
        self._links, self._identity, self._oldest = links, identity, oldest
        self._on_reply, self._on_loss, self._unix_s = on_reply, on_loss, unix_s
        self._grant: Grant | None = None
        self._is_over = False
        self._lost_epoch = -1
        """The last epoch of which `on_loss` was told a loss: it ends the epoch, so that any further one means nothing."""
        self._dtype = ""

    @property
    def is_stuck(self) -> bool:
        """By the words of its hops at the last look, and none of them computes."""
        return self.verdict is not None and self.verdict.kind is not Kind.BUSY

    def __str__(self) -> str:
        return f"session {short(self.id)} epoch {self.epoch}"

    # --- routes

    async def install(self, route: Route, dtype: str) -> None:
        """Begin a new epoch on `route`: hops that stay are told by the hop above, new ones are opened. A dial that fails is a loss."""
        before, self.route, self._dtype = self.route, route, dtype
        self.epoch += 1
        self.verdict = None
        expires_s = self._unix_s() + GRANT_LIFE_S
        grant = Grant(client=self._identity.peer_id, session=self.id, epoch=self.epoch, weights=self.weights, route=route,
                      expires_s=expires_s)  # fmt: skip
        self._grant = grant.signed(self._identity.sign)
        if self.last is not None and not (before and before[-1].place == route[-1].place):
            self.last.end()  # first of all: it ends when its hop hears that it is left out, and that is no loss of the new one
            self.last = None
        try:
            await asyncio.gather(self._connect_first(before), self._attach_last())  # two ends, one round trip
        finally:
            if self._is_over:  # another leg was taken in the meantime
                self.let_go()

    async def _connect_first(self, before: Route) -> None:
        assert self._grant is not None
        wire = self.down.wire
        if wire is not None and wire.is_open and before and before[0].place == self.route[0].place:
            self.down.reroute(self._grant, 0)
            return
        self.down.end(Close(session=self.id, below=False))
        try:
            opened = await self._links.open(self._grant, 0, self._dtype, self._on_message, self._on_lost, self.fork)
        except SwarmError as error:
            self.lose(0, error, self.epoch)
            return
        self.down.connect(opened, self.epoch)

    async def _attach_last(self) -> None:
        assert self._grant is not None
        if self.last is not None and self.last.is_open:
            return
        try:
            self.last = await self._links.attach(self._grant, self._oldest(), self._on_message, self._on_lost)
        except SwarmError as error:
            self.last = None
            self.lose(len(self.route) - 1, error, self.epoch)

    def let_go(self, keep_s: int = 0) -> list[MessageStream]:
        """Close both message streams; returns those that have not ended yet. keep_s: as `Close` has it."""
        self._is_over = True
        wires = [wire for wire in (self.down.wire, self.last) if wire is not None]
        self.down.end(Close(session=self.id, keep_s=keep_s))
        if keep_s:
            self.down.retained.settle()
        if self.last is not None:
            self.last.end()
        return wires

    # --- what hops say

    async def _on_message(self, wire: MessageStream, message: Message) -> None:
        is_first, is_last = wire is self.down.wire, wire is self.last
        match message:
            case Reply() if is_last:
                self._on_reply(self, message)
            case Expect() if is_first:
                self.is_fork_taken |= self.fork is not None and message.epoch == 0 and message.step == self.fork.step
                self.down.expect(message)
                if self.down.is_insatiable:
                    self.lose(0, PeerUnreachableError("it asks for the whole history again and again"), self.epoch)
            case HopLost() if is_first and message.index < len(self.route):
                self._on_told(message, is_told=message.index > 0)
            case HopLost() if is_last and message.index == len(self.route) - 1:  # of others, the last hop knows nothing
                self._on_told(message, is_told=False)
            case _ if not self._is_over:  # after the end, what was still under way is no news
                log.warning("%s: %s does not belong here; dropped", self, type(message).__name__)

    def _on_told(self, lost: HopLost, is_told: bool) -> None:
        if lost.epoch == self.epoch:
            name = f"peer {short_peer(self.route[lost.index].peer)}"
            cause = quoted(f"the hop above {name}" if is_told else name, from_wire(lost.code, lost.message))
            self._tell(Loss(lost.epoch, lost.index, cause, is_told))

    async def _on_lost(self, wire: MessageStream, cause: SwarmError | None) -> None:
        reason = cause or PeerUnreachableError("the hop ended the stream: it is leaving, or has dropped the session")
        if wire is self.down.wire:
            # a new route may just have been chosen, whose first hop is not the one that is lost
            self.lose(0, reason, self.down.epoch)
        elif wire is self.last:
            self.lose(len(self.route) - 1, reason, self.epoch)

    def lose(self, index: int, cause: SwarmError, epoch: int, others: tuple[int, ...] = ()) -> None:
        """We have seen it ourselves."""
        self._tell(Loss(epoch, index, cause, others=others))

    def _tell(self, loss: Loss) -> None:
        if loss.epoch == self.epoch > self._lost_epoch:
            self._lost_epoch = self.epoch
            self._on_loss(self, loss)

    # --- how far they are

    async def look(self) -> Verdict:
        """Ask every hop how far it is, and note where the oldest step is stuck."""
        epoch, needed = self.epoch, self._oldest() + 1
        verdict = suspicion.judge(await self.ask(len(self.route), self.route), needed, epoch)
        if epoch == self.epoch and needed == self._oldest() + 1:  # else it says nothing of the step that is awaited now
            self.num_found = self.num_found + 1 if verdict == self.verdict else 1
            self.verdict = verdict
        return verdict

    async def ask(self, num_hops: int, route: Route) -> list[Progress | None]:
        """What the first hops of a route say of themselves; None = no answer."""
        return await asyncio.gather(*(self._ask(hop) for hop in route[:num_hops]))

    async def _ask(self, hop: Hop) -> Progress | None:
        try:
            return await self._links.progress(hop, self.id)
        except (PeerUnreachableError, DeadlineError, UnauthenticatedError, TimeoutError) as error:
            log.debug("%s: %s does not say how far it is: %s", self, short_peer(hop.peer), error)
            return None
        except SwarmError:  # an answer, of a peer that has no such call or refuses it
            return Progress()
