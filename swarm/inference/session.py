"""A session, as its client sees it: steps go in, outputs come back, and hops that die in between are replaced.

The client owns the route. It holds a wire to the first hop (steps go down), one to the last (replies come back), and, like every hop,
what it has sent (`downstream.py`). Whoever notices a death says HopLost; the client answers with a new epoch: a route around the dead,
told to the hops that stay (Reroute) and opened at those that are new. Replays happen between hops; here only the replies are late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from protocols import tensors
from protocols.defaults import (
    GRANT_LIFE_S,
    WINDOW_BYTES,
    WINDOW_STEPS,
)
from protocols.errors import (
    BadRequestError,
    DeadlineError,
    InternalError,
    NonsenseError,
    NoRouteError,
    PeerUnreachableError,
    SwarmError,
    from_wire,
)
from protocols.identity import Identity
from protocols.ids import PeerId, SessionId, Span, short, short_peer
from protocols.inference import WANT_ALL, Close, Expect, Fork, Grant, HopLost, Message, Op, Reply, Route, Step
from protocols.tensors import WireTensor
from swarm import waiting
from swarm.inference import chunks, trace
from swarm.inference.chunks import Chunk
from swarm.inference.downstream import Downstream
from swarm.inference.links import Links
from swarm.inference.requests import Asked, Awaited, Request, StepOutput
from swarm.inference.requests import SessionConfig as SessionConfig
from swarm.inference.step_waits import StepWaits
from swarm.inference.wire import Wire
from swarm.routing.router import Router
from swarm.waiting import Waits

log = logging.getLogger(__name__)

MAX_LOSSES = 64
"""Losses of one epoch that wait to be answered; any further ones tell nothing new."""

MAX_BUDGET_S = 86_400.0


class Session:
    """One generation over one route at a time. All methods belong to one event loop; steps are run one after the other."""

    def __init__(
        self,
        router: Router,
        links: Links,
        identity: Identity,
        config: SessionConfig | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.id = SessionId(secrets.token_bytes(16))
        self.route: Route = ()
        self.dtype: str | None = None
        """Compute dtype of the route, known once `open` has returned; hidden states are sent in it."""
        self.replaced = 0
        """Hops that were lost and replaced so far."""
        self.pauses_s: list[float] = []
        """For each loss, the seconds until the next reply came."""
        self._router, self._links, self._identity = router, links, identity
        self._config = config or SessionConfig()
        self._waits = StepWaits((waits or Waits()).slot())
        self._epoch = -1
        self._grant: Grant | None = None
        self._down = Downstream(self.id)
        self._fork: Fork | None = None
        """Where this session's rows began, and who held them then."""
        self._forked_places: set[tuple[PeerId, Span]] | None = None
        self._last: Wire | None = None
        self._pending: dict[int, Awaited] = {}
        self._losses: asyncio.Queue[HopLost] = asyncio.Queue()
        self._repairs: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lost_at_s: float | None = None
        self._heard_s = 0.0
        """When the last step was sent, the last reply came, or the last route was opened."""
        self._is_repairing = False
        self._is_thin = False
        self._failure: SwarmError | None = None
        self._turn = asyncio.Lock()

    def __str__(self) -> str:
        return f"session {short(self.id)} epoch {self._epoch}"

    # --- what callers use

    async def open(self, thin: bool = False) -> None:
        """Find a route and open it; does nothing where there is one. NoRouteError or ModelMismatchError says why there is none.

        thin: the route needs the model's ends at its first and at its last hop, for a session whose steps bring ids or embeddings.
        """
        if self._failure is not None:
            raise self._failure
        if self._repairs is None:
            self._is_thin = thin
            config = self._config
            self._waits.late(waiting.ROUTING)
            route, self.dtype = await self._router.find(
                config.patience_s, config.dtype, self._forked_places, thin=thin, blocks=config.blocks, on_wait=self._waits.late
            )
            trace.mark("routed", self.id, 0)
            if self._failure is None:
                await self._install(route)  # losses wait until it is done: two routes must never be installed at once
            if self._failure is not None:  # closed in the meantime: what was opened since would stay at the hops for long
                self._let_go()
                raise self._failure
            if not self._losses.qsize():
                self._waits.late(None)
            self._repairs = asyncio.create_task(self._repair(), name=f"repairs of session {short(self.id)}")
            self._watching = asyncio.create_task(self._watch(), name=f"watch over session {short(self.id)}")

    async def step(
        self,
        ops: Sequence[Op],
        counts: Sequence[int],
        tokens: WireTensor,
        want: int = WANT_ALL,
        positions: Sequence[int] | None = None,
        *,
        kind: str = "hidden",
        result: str = "hidden",
        top: int = 0,
    ) -> StepOutput:
        """Send tokens of every row through the route: `counts` tokens of each, rows one after the other on the first axis of `tokens`.

        kind: what `tokens` are: "hidden" [T, H], "ids" [T] int32, or "embeds" [T, E]: a caller's embeddings, for the model's own
        embedding stage. A session stays with hidden states, or with the other two.
        want: the last n tokens of each row come back (WANT_ALL: all, 0: none), T' in all, rows one after the other.
        result: "hidden" [T', H], "logits" [T', V] float32, or "top": the `top` largest logits [T', top] and their ids, largest first.
        Deaths are survived in here. Raises NoRouteError after `patience_s` without a route, or the error that no other peer would
        spare us; the session is of no use then. Cancelling leaves it in an unknown state: close it.
        """
        asked = Asked(counts=tuple(counts), tokens=tokens, want=want, positions=positions, kind=kind, result=result, top=top)
        asked.check()
        if asked.is_thin and self._config.blocks is not None:
            raise BadRequestError(
                f"a session over blocks {self._config.blocks} takes hidden states, got {kind}; open one over all blocks"
            )
        async with self._turn:
            trace.mark("embedded", self.id, self._down.retained.next_step, tokens.num_bytes)
            self._waits.begin()
            try:
                return await self._step(asked, ops)
            finally:
                self._waits.end()

    async def _step(self, asked: Asked, ops: Sequence[Op]) -> StepOutput:
        if self._repairs is not None and asked.is_thin != self._is_thin:
            before = "ids or embeddings" if self._is_thin else "hidden states"
            raise BadRequestError(f"this session has sent {before}; {asked.kind} need a session of their own")
        await self.open(asked.is_thin)
        request = self._request(asked)
        pieces = chunks.plan(asked.counts, asked.want, self._config.chunk_tokens, request.limit_wanted)
        replies = await self._run(pieces, ops, request)
        values = chunks.join(pieces, [(reply.counts, reply.payload) for reply in replies])
        ids = [(reply.counts, reply.ids) for reply in replies if reply.ids is not None]
        return StepOutput(values=values, ids=chunks.join(pieces, ids) if ids else None)

    async def fork(self) -> Session:
        """A second session whose rows are those of this one; from here on, neither knows of the other.

        Nothing is sent before its first step. Hops that hold this session then, as it is now, copy its rows; others are brought up to
        date as after a death, by one prefill of what this session has sent. So it survives deaths, and whatever becomes of this one.
        Waits for a step that is under way.
        """
        async with self._turn:
            if self._failure is not None:
                raise self._failure
            twin = Session(
                self._router, self._links, self._identity, replace(self._config, dtype=self.dtype or self._config.dtype)
            )
            twin._down.retained = self._down.retained.fork()
            if (step := twin._down.retained.next_step) > 0:
                twin._fork, twin._forked_places = Fork(session=self.id, step=step), {hop.place for hop in self.route}
            return twin

    def _request(self, asked: Asked) -> Request:
        """The same with what its replies must look like."""
        if not asked.is_thin:
            return Request(asked=asked, width=asked.tokens.shape[-1], dtype=asked.tokens.dtype)
        hidden_size, vocab_size = self._config.hidden_size, self._config.vocab_size
        if hidden_size is None or vocab_size is None or self.dtype is None:
            raise BadRequestError(
                "a session that sends token ids or embeddings needs hidden_size and vocab_size in its SessionConfig"
            )
        width = {"hidden": hidden_size, "logits": vocab_size, "top": asked.top}[asked.result]
        if asked.top > vocab_size:
            raise BadRequestError(f"the {asked.top} largest logits were asked for, this model has {vocab_size}")
        return Request(
            asked=asked, width=width, dtype=self.dtype if asked.result == "hidden" else "float32", vocab_size=vocab_size
        )

    async def close(self) -> None:
        """End the session everywhere; what the hops lent is returned at once. Safe to repeat.

        Returns when the first hop has been told (or does not listen any more): the connection may be closed then.
        """
        for task in (self._watching, self._repairs):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._fail(PeerUnreachableError("the session was closed"))
        wires = [wire for wire in (self._down.wire, self._last) if wire is not None]
        self._let_go()
        await asyncio.gather(*(wire.ended() for wire in wires))

    def _let_go(self) -> None:
        """Say the last word on both wires."""
        self._down.end(Close(session=self.id))
        if self._last is not None:
            self._last.end()

    # --- steps

    async def _run(self, pieces: list[Chunk], ops: Sequence[Op], request: Request) -> list[Reply]:
        """Send the chunks with a bounded number in flight, and no more bytes than the last hop keeps replies of; the replies in order."""
        replies: list[Reply] = []
        flying: deque[tuple[int, int]] = deque()
        if len(pieces) > 1:
            self._waits.reads(sum(request.asked.counts))
        for number, piece in enumerate(pieces):
            step = self._frame(piece, ops if number == 0 else (), request)
            awaited = Awaited(asyncio.get_running_loop().create_future(), chunks.kept(step.want, step.counts), request)
            size = max(step.payload.num_bytes, sum(awaited.counts) * request.token_bytes)
            while flying and (len(flying) >= WINDOW_STEPS or sum(other for _, other in flying) + size > WINDOW_BYTES):
                replies.append(await self._reply(flying.popleft()[0]))
                self._waits.has_read(sum(pieces[len(replies) - 1].counts))
            self._pending[step.step] = awaited
            self._heard_s = time.monotonic()
            trace.mark("framed", self.id, step.step, step.payload.num_bytes)
            self._down.send(step)
            flying.append((step.step, size))
        while flying:
            replies.append(await self._reply(flying.popleft()[0]))
            self._waits.has_read(sum(pieces[len(replies) - 1].counts))
        return replies

    def _frame(self, piece: Chunk, ops: Sequence[Op], request: Request) -> Step:
        asked = request.asked
        return Step(
            session=self.id,
            epoch=max(0, self._epoch),
            step=self._down.retained.next_step,
            counts=piece.counts,
            payload=chunks.cut(piece, asked.counts, asked.tokens),
            ops=tuple(ops),
            positions=None if asked.positions is None else chunks.cut_positions(piece, asked.counts, asked.positions),
            want=piece.want,
            kind=asked.kind,
            result=asked.result,
            top=asked.top,
            budget_ms=int(min(MAX_BUDGET_S, self._config.patience_s) * 1e3),
            priority=self._config.priority,
        )

    async def _reply(self, number: int) -> Reply:
        future = self._pending[number].reply
        try:
            return await future
        finally:
            self._pending.pop(number, None)

    async def _watch(self) -> None:
        """While replies are awaited and none comes for `stall_s`, look who is dead. A task of its own: no reply waits for a timer."""
        stall_s = self._config.stall_s
        while self._failure is None:
            silent_s = time.monotonic() - self._heard_s
            if not self._pending:
                await asyncio.sleep(stall_s / 4)
            elif silent_s < stall_s:
                await asyncio.sleep(stall_s - silent_s + 0.001)
            else:
                try:
                    await self._look_for_the_dead()
                except Exception as error:  # else whoever waits for a reply would wait forever
                    log.exception("%s: the look for the dead failed by a fault of ours", self)
                    self._fail(InternalError(f"hops could not be asked whether they live: {type(error).__name__}"))
                await asyncio.sleep(stall_s)

    async def _look_for_the_dead(self) -> None:
        """Nothing came for a while: whoever does not answer a hello is lost. A step that only takes long goes on, up to `silence_s`."""
        epoch = self._epoch
        for index, cause in enumerate(await self._router.alive(self.route)):
            if cause is not None:
                self._lose(index, cause, epoch)
        silent_s = time.monotonic() - self._heard_s
        if (
            epoch == self._epoch and not self._is_repairing and silent_s >= self._config.silence_s
        ):  # one of them swallows steps, and nobody can tell which
            silence = DeadlineError(f"no reply for {silent_s:.0f} s from a route whose hops all answer hello")
            for hop in self.route:
                self._router.failed(hop.peer, silence)
            self._lose(0, silence, epoch)

    # --- wires

    async def _on_message(self, wire: Wire, message: Message) -> None:
        match message:
            case Reply() if wire is self._last:
                self._on_reply(message)
            case Expect() if wire is self._down.wire:
                self._down.expect(message)
                if self._down.is_insatiable:
                    self._lose(0, PeerUnreachableError("it asks for the whole history again and again"), self._epoch)
            case HopLost() if wire is self._down.wire or (wire is self._last and message.index == len(self.route) - 1):
                self._note_loss(message)  # of others, the last hop knows nothing: it must not accuse them
            case _ if self._failure is None:  # after the end, what was still under way is no news
                log.warning("%s: %s does not belong here; dropped", self, type(message).__name__)

    def _on_reply(self, reply: Reply) -> None:
        awaited = self._pending.get(reply.step)
        if awaited is None or awaited.reply.done():
            return
        if not awaited.fits(reply) or not tensors.is_finite(reply.payload):
            got = f"{list(reply.counts)[:8]} of {reply.payload.dtype} {list(reply.payload.shape)}"
            self._doubt_last(f"the last hop answers step {reply.step} with counts {got}, expected finite {awaited}")
            return
        self._heard_s = time.monotonic()
        trace.mark("answered", self.id, reply.step, reply.num_bytes)
        if self._lost_at_s is not None:
            self.pauses_s.append(time.monotonic() - self._lost_at_s)
            self._lost_at_s = None
        self._waits.late(None)
        awaited.reply.set_result(reply)

    def _doubt_last(self, why: str) -> None:
        self._lose(len(self.route) - 1, InternalError(why), self._epoch)

    async def _on_lost(self, wire: Wire, cause: SwarmError | None) -> None:
        reason = cause or PeerUnreachableError("the hop ended the stream: it is leaving, or has dropped the session")
        if wire is self._down.wire:
            # a new route may just have been chosen, whose first hop is not the one that is lost
            self._lose(0, reason, self._down.epoch)
        elif wire is self._last:
            self._lose(len(self.route) - 1, reason, self._epoch)

    def _lose(self, index: int, cause: SwarmError, epoch: int) -> None:
        self._note_loss(HopLost(session=self.id, epoch=epoch, index=index, code=cause.code, message=str(cause)))

    def _note_loss(self, lost: HopLost) -> None:
        """Of each epoch only the first loss matters, since it ends the epoch: the rest need not be kept."""
        if lost.epoch == self._epoch and self._losses.qsize() < MAX_LOSSES:
            self._losses.put_nowait(lost)

    # --- deaths

    async def _repair(self) -> None:
        """Answer every loss with a new route, for as long as the session lives."""
        while self._failure is None:
            lost = await self._losses.get()
            if lost.epoch == self._epoch and lost.index < len(self.route):
                self._is_repairing = True
                try:
                    await self._replace(lost)
                except SwarmError as error:
                    self._fail(error)
                except Exception as error:  # else whoever waits for a reply would wait forever
                    log.exception("%s: a repair failed by a fault of ours", self)
                    self._fail(InternalError(f"the session could not be repaired: {type(error).__name__}; the log says more"))
                finally:
                    self._is_repairing, self._heard_s = False, time.monotonic()

    async def _replace(self, lost: HopLost) -> None:
        """Route around a lost hop. Raises where nobody else could do better, or nobody is left within `patience_s`."""
        cause = from_wire(lost.code, lost.message)
        if not cause.try_another_peer:
            raise cause
        hop = self.route[lost.index]
        log.info("%s: hop %d (%s, blocks %s) is lost: %s", self, lost.index, short_peer(hop.peer), hop.span, cause)
        if self._lost_at_s is None or not self._pending:  # while nobody waits for a reply, patience is not used up
            self._lost_at_s = time.monotonic()
        suspects = self.route[max(0, lost.index - isinstance(cause, NonsenseError)) : lost.index + 1]
        for suspect in suspects:  # of two neighbours that do not understand each other, nobody can tell which is at fault
            self._router.failed(suspect.peer, cause)
        staying = {other.place for other in self.route if other not in suspects}
        self._waits.late(waiting.replacing(hop.span))
        config, has_patience = self._config, time.monotonic() < self._lost_at_s + self._config.patience_s
        route, _ = await self._router.find(
            config.patience_s, self.dtype, staying, thin=self._is_thin, blocks=config.blocks,
            since_s=self._lost_at_s, on_wait=self._waits.late,
        )  # fmt: skip
        if not has_patience:
            raise NoRouteError(f"hops were lost again and again for {self._config.patience_s:.0f} s; the last one: {cause}")
        self.replaced += 1
        self._waits.late(waiting.replaying(hop.span))
        await self._install(route)

    async def _install(self, route: Route) -> None:
        """Begin a new epoch on `route`: hops that stay learn of it from above, new ones are opened. A dial that fails is a loss."""
        before, self.route = self.route, route
        self._epoch += 1
        expires_s = time.time() + GRANT_LIFE_S
        grant = Grant(client=self._identity.peer_id, session=self.id, epoch=self._epoch, model=self._router.model, route=route,
                      expires_s=expires_s)  # fmt: skip
        self._grant = grant.signed(self._identity.sign)
        if self._last is not None and not (before and before[-1].place == route[-1].place):
            self._last.end()  # first of all: it ends when its hop learns that it is left out, and that is no loss of the new one
            self._last = None
        await asyncio.gather(self._connect_first(before), self._attach_last())  # two ends, one round trip

    async def _connect_first(self, before: Route) -> None:
        assert self._grant is not None and self.dtype is not None
        wire = self._down.wire
        if wire is not None and wire.is_open and before and before[0].place == self.route[0].place:
            self._down.reroute(self._grant, 0)
            return
        self._down.end(Close(session=self.id, below=False))
        try:
            opened = await self._links.open(self._grant, 0, self.dtype, self._on_message, self._on_lost, self._fork)
        except SwarmError as error:
            self._lose(0, error, self._epoch)
            return
        self._down.connect(opened, self._epoch)

    async def _attach_last(self) -> None:
        assert self._grant is not None
        if self._last is not None and self._last.is_open:
            return
        oldest = min(self._pending, default=self._down.retained.next_step)
        try:
            self._last = await self._links.attach(self._grant, oldest, self._on_message, self._on_lost)
        except SwarmError as error:
            self._last = None
            self._lose(len(self.route) - 1, error, self._epoch)

    def _fail(self, error: SwarmError) -> None:
        self._failure = self._failure or error
        for awaited in self._pending.values():
            if not awaited.reply.done():
                awaited.reply.set_exception(self._failure)
                awaited.reply.exception()  # whoever waits raises it; whoever was cancelled should not be warned about it
