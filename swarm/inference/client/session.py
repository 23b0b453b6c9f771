"""A session, as its client sees it.

Steps go in, outputs come back, and hops that die in between are replaced.

The client owns the route. It holds a wire to the first hop (steps go down), one to the last (replies come back), and, like every hop,
what it has sent. This file cuts steps and checks replies; `legs.py` finds the way, and another one if hops are lost or keep what they get.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from protocols import tensors, timings
from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.errors import BadRequestError, InternalError, PeerUnreachableError
from protocols.identity import Identity
from protocols.ids import SessionId, short
from protocols.inference import PASS_ON, Op, Reply, Route, Step, StepSpec
from protocols.tensors import WireTensor
from swarm import log_ids, trace
from swarm.inference import chunks
from swarm.inference.chunks import Chunk
from swarm.inference.client.leg import Leg
from swarm.inference.client.legs import Legs
from swarm.inference.client.pending import Awaited, Pending
from swarm.inference.client.step_waits import StepWaits
from swarm.inference.client.watch import Watch
from swarm.inference.requests import ReplyFormat, StepInput, StepOutput, reply_format
from swarm.inference.requests import SessionConfig as SessionConfig
from swarm.routing.router import Router
from swarm.streams.links import Links
from swarm.timings import StepTime, Timings
from swarm.tracing import OFF, StepTracer
from swarm.waiting import Waits

MAX_BUDGET_S = 86_400.0


class Session:
    """One generation over one route at a time. All methods belong to one event loop; steps are run one after the other."""

    def __init__(
        self, router: Router, links: Links, identity: Identity, config: SessionConfig | None = None, waits: Waits | None = None
    ) -> None:
        self._router, self._links, self._identity = router, links, identity
        self._config = config or SessionConfig()
        self._waits = StepWaits((waits or Waits()).slot())
        self._pending = Pending()
        self.has_answered = self._pending.has_answered
        self._legs = Legs(router, links, identity, self._config, self._waits, self._pending, self._on_reply)
        self._is_open = False
        self.timings = Timings()
        """Of all steps so far; `tracer` is told of each."""
        self.tracer: StepTracer = OFF
        self._trace, self._sent_s = b"", 0.0
        """Context of the step that runs, and when its first frame was sent."""
        self.is_kept = False
        """It was closed, and hops may have kept its sequences."""
        self._turn = asyncio.Lock()

    def __str__(self) -> str:
        return f"session {short(self.id)}"

    @property
    def id(self) -> SessionId:
        """What its hops know it by; another one, once a route that was tried beside the first has answered before it."""
        return self._legs.current.id

    @property
    def route(self) -> Route:
        return self._legs.current.route

    @property
    def dtype(self) -> str | None:
        """Compute dtype of the route, known once `open` has returned; hidden states are sent in it."""
        return self._legs.search.dtype

    @property
    def versions(self) -> tuple[int, ...]:
        """Of a model in training: the versions that have answered, one after the other; more than one only if the session follows."""
        return tuple(self._legs.search.versions)

    @property
    def replaced(self) -> int:
        """Hops that were lost, and routes that kept steps, and were replaced so far."""
        return self._legs.repair.replaced + self._legs.num_adopted

    @property
    def pauses_s(self) -> list[float]:
        """For each loss, the seconds until the next reply came."""
        return self._legs.lateness.outage.pauses_s

    # --- what callers use

    async def open(self, thin: bool = False) -> None:
        """Find a route and open it; does nothing where there is one. NoRouteError or ModelMismatchError says why there is none.

        thin: the route needs embedding and head at its first and at its last hop, for a session whose steps bring ids or embeddings.
        """
        self._pending.check()
        if not self._is_open:
            self._legs.search.is_thin = thin
            with log_ids.about_session(short(self.id)):
                await self._legs.open()
                self._pending.check()
                self._legs.keep(Watch(self._legs, self._config, self._pending).run(), f"the watch of {self}")
            self._is_open = True

    async def step(
        self,
        ops: Sequence[Op],
        counts: Sequence[int],
        tokens: WireTensor,
        spec: StepSpec = PASS_ON,
        positions: Sequence[int] | None = None,
    ) -> StepOutput:
        """Send tokens of every sequence through the route: `counts` of each, one sequence after the other on the first axis of `tokens`.

        spec: what `tokens` are ("hidden" [T, H], "ids" [T] int32, or "embeds" [T, E]: a caller's embeddings, for the model's own embedding
        stage; a session stays with hidden states, or with the other two), of which tokens something comes back (T' in all, sequences one
        after the other), and what: "hidden" [T', H], "logits" [T', V] float32, the `top` largest logits [T', top] and their ids,
        largest first, or sums of final hidden states (`StepOutput`). Its priority is the session's.
        Deaths are survived in here. Raises NoRouteError after `route_timeout_s` without a route, or the error that no other peer would
        spare us; the session is of no use then. Cancelling leaves it in an unknown state: close it.
        """
        assert spec.priority == 0, "a session's priority is in its SessionConfig"
        if self._config.priority:
            spec = replace(spec, priority=self._config.priority)
        given = StepInput(counts=tuple(counts), tokens=tokens, spec=spec, positions=positions)
        given.check(self._config.blocks)
        async with self._turn:
            trace.mark("embedded", self.id, self._legs.retained.next_step, tokens.num_bytes)
            self._waits.begin()
            self._trace, output = self.tracer.begin(), None
            try:
                with log_ids.about_session(short(self.id)):
                    output = await self._step(given, ops)
                return output
            finally:
                self.tracer.end(output.time if output is not None else None)
                self._waits.end()

    async def _step(self, given: StepInput, ops: Sequence[Op]) -> StepOutput:
        spec = given.spec
        if self._is_open and spec.is_thin != self._legs.search.is_thin:
            before = "ids or embeddings" if self._legs.search.is_thin else "hidden states"
            raise BadRequestError(f"this session has sent {before}; {spec.kind} need a session of their own")
        began_s = (now_s := self._router.clock.now_s)()
        await self.open(spec.is_thin)
        opened_s = now_s()
        expected = reply_format(given, self._config, self.dtype)
        pieces = chunks.plan(given.counts, spec.want, self._config.chunk_tokens, expected.limit_wanted)
        replies = await self._run(pieces, ops, given, expected)
        took = _time_of(given, replies, self.route, (began_s, opened_s, self._sent_s, now_s()))
        self.timings.add(took)
        return _joined(pieces, replies, spec, took)

    async def fork(self, tokens: int = 0) -> Session:
        """A second session with the same sequences, independent of this one from here on.

        Nothing is sent before its first step. Hops that hold this session then, as it is now, copy its sequences; others are brought up to
        date as after a death, by one prefill of what this session has sent. So it survives deaths, and whatever becomes of this one.
        Waits for a step that is under way. A session that was closed with `keep_s` can be forked as well.

        tokens: with so many first tokens of its only sequence, which never change here; `has_answered` says that hops have as many. Does
        not wait then, and hops copy them also while this session goes on.
        """
        async with contextlib.nullcontext() if tokens else self._turn:
            if not self.is_kept:
                self._pending.check()
            config = replace(self._config, dtype=self.dtype or self._config.dtype)
            twin = Session(self._router, self._links, self._identity, config)
            twin._legs.begin_as(self._legs, tokens)
            return twin

    @property
    def is_fork_taken(self) -> bool:
        """Known with the first reply: the first hop held the session that this one is a fork of, and computed none of its tokens again."""
        return self._legs.current.is_fork_taken

    async def close(self, keep_s: int = 0) -> None:
        """End the session everywhere; its memory at the hops is freed at once. Safe to repeat.

        keep_s: hops may keep its sequences for so many seconds after their last use, in memory that is free otherwise, and a `fork` of
        this session may still begin with them. Without effect while a step is under way, and for a session that has failed.
        Returns when the first hop has been told (or does not listen any more): the connection may be closed then.
        """
        is_well = self._is_open and self._pending.failure is None and not self._pending.steps
        self.is_kept = self.is_kept or (keep_s > 0 and is_well)
        try:
            await self._legs.stop()
        finally:  # also for a caller that is cancelled meanwhile: hops would hold the session for long
            self._pending.fail(PeerUnreachableError("the session was closed"))
            wires = self._legs.let_go(keep_s if is_well else 0)
        await asyncio.gather(*(wire.ended() for wire in wires))

    # --- steps

    async def _run(self, pieces: list[Chunk], ops: Sequence[Op], given: StepInput, expected: ReplyFormat) -> list[Reply]:
        """Send the prefill chunks, with a bounded number in flight, and no more bytes than the last hop keeps of replies; in order."""
        replies: list[Reply] = []
        flying: deque[tuple[int, int]] = deque()
        if len(pieces) > 1:
            self._waits.reads(sum(given.counts))
        for number, piece in enumerate(pieces):
            leg, next_step = self._legs.current, self._legs.retained.next_step
            step = _framed(piece, ops if number == 0 else (), given, leg, next_step, self._config, self._trace)
            counts = step.spec.answered(chunks.kept(step.spec.want, step.counts))
            size = max(step.payload.num_bytes, sum(counts) * expected.token_bytes)
            awaited = Awaited(asyncio.get_running_loop().create_future(), counts, expected, sum(step.counts), size)
            while flying and (len(flying) >= WINDOW_STEPS or sum(other for _, other in flying) + size > WINDOW_BYTES):
                replies.append(await self._pending.reply(flying.popleft()[0]))
                self._waits.has_read(sum(pieces[len(replies) - 1].counts))
            self._pending.add(step.step, awaited)
            trace.mark("framed", self.id, step.step, step.payload.num_bytes)
            self._legs.send(step)
            if number == 0:
                self._sent_s = self._router.clock.now_s()
            flying.append((step.step, size))
        while flying:
            replies.append(await self._pending.reply(flying.popleft()[0]))
            self._waits.has_read(sum(pieces[len(replies) - 1].counts))
        return replies

    def _on_reply(self, leg: Leg, reply: Reply) -> None:
        awaited = self._pending.awaiting(reply.step)
        if awaited is None or not self._legs.has(leg):
            return
        if not awaited.fits(reply) or not tensors.is_finite(reply.payload):
            got = f"{list(reply.counts)[:8]} of {reply.payload.dtype} {list(reply.payload.shape)}"
            why = f"the last hop answers step {reply.step} with counts {got}, expected finite {awaited}"
            leg.lose(len(leg.route) - 1, InternalError(why), leg.epoch)
            return
        self._legs.answered(leg, awaited.num_tokens)
        trace.mark("answered", leg.id, reply.step, reply.num_bytes)
        self._waits.late(None)
        awaited.reply.set_result(reply)


def _joined(pieces: list[Chunk], replies: list[Reply], spec: StepSpec, time: StepTime) -> StepOutput:
    if spec.result == "pooled":
        return StepOutput(values=tensors.join([reply.payload for reply in replies]), time=time)
    values = chunks.join(pieces, [(reply.counts, reply.payload) for reply in replies])
    ids = [(reply.counts, reply.ids) for reply in replies if reply.ids is not None]
    totals = [(reply.counts, reply.totals) for reply in replies if reply.totals is not None]
    return StepOutput(
        values=values,
        ids=chunks.join(pieces, ids) if ids else None,
        totals=chunks.join(pieces, totals) if totals else None,
        time=time,
    )


def _framed(
    piece: Chunk, ops: Sequence[Op], given: StepInput, leg: Leg, number: int, config: SessionConfig, trace_context: bytes
) -> Step:
    return Step(
        session=leg.id,
        epoch=max(0, leg.epoch),
        step=number,
        counts=piece.counts,
        payload=chunks.cut(piece, given.counts, given.tokens),
        ops=tuple(ops),
        positions=None if given.positions is None else chunks.cut_positions(piece, given.counts, given.positions),
        spec=given.spec.wanting(piece.want),
        budget_ms=int(min(MAX_BUDGET_S, config.route_timeout_s) * 1e3),
        times=b"",
        trace=trace_context,
    )


def _time_of(given: StepInput, replies: Sequence[Reply], route: Route, at_s: tuple[float, float, float, float]) -> StepTime:
    """at_s: when it began, had a route, had sent its first frame, and had the last reply."""
    route_s, frame_s, wait_s = (later - before for before, later in pairwise(at_s))
    return StepTime(
        route=route,
        hops=[hop for reply in replies for hop in timings.unpacked(reply.times, len(route))],
        num_tokens=sum(given.counts),
        route_ms=route_s * 1e3, frame_ms=frame_s * 1e3, wait_ms=wait_s * 1e3,
        sent_bytes=given.tokens.num_bytes, received_bytes=sum([reply.num_bytes for reply in replies]),
    )  # fmt: skip
