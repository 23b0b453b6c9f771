"""Executes one host's requests in the device's thread.

A long step is run in prefill chunks, as the schedule cuts it: its operations on sequences come before the first, memory for all of it is
asked for then, and its caller gets the whole output after the last. If it ends in between (no memory, its deadline, an error), the session
loses its sequences, exactly as for a step that runs at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from node.device.host_queue import HostQueue
from node.device.kept import NO_CLIENT
from node.device.memory import Holdings
from node.device.pending import Chunk, Pending
from node.device.thread import Device
from node.device.work import Fork, HeldSequences, Keep, Step
from node.hardware import wait_for
from node.serving import batch as edges
from node.serving import step as steps
from node.serving.forwards import Forwards
from node.serving.part_engines import PartEngines
from node.serving.worked import WorkCounter
from protocols.errors import CacheFullError, DeadlineError, InternalError, OverloadedError, SwarmError
from swarm.inference import rows as row_operations
from swarm.inference.hop.compute import Output
from swarm.models.default_dtype import computing

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine, TokenSequence

log = logging.getLogger(__name__)


class Executor:
    """The host of a `HostQueue`: the device's thread calls `change`, `forward` and `warm_up`."""

    def __init__(self, engines: PartEngines, ends: Ends | None, device: Device, max_positions: int | None = None) -> None:
        """max_positions: longest sequence; None = no limit."""
        self._engines, self._ends, self._device, self._max_positions = engines, ends, device, max_positions
        self.forwards = Forwards(engines, ends, device.memory, self._fail)
        self.holdings = Holdings()
        self.work = WorkCounter()
        self._queue: HostQueue | None = None

    @property
    def queue(self) -> HostQueue:
        """The requests that wait here; OverloadedError before `attach`."""
        if self._queue is None:
            raise OverloadedError("this peer is still starting: try a replica")
        return self._queue

    @property
    def is_attached(self) -> bool:
        """Whether `attach` was called; it stays so after the host has left its device."""
        return self._queue is not None

    def attach(self, budget_tokens: int) -> None:
        """From now on the device's thread runs what is queued. budget_tokens: new tokens of all sessions in one forward."""
        self._queue = self._device.attach(self, budget_tokens)

    def change(self, pending: Pending) -> None:
        """Give a session's sequences back, keep them for forks, or let it begin with copies of another session's."""
        request, session = pending.request, pending.request.session
        try:
            if isinstance(request, Keep):
                self._keep(session)
            elif isinstance(request, Fork):
                self._fork(request)
            else:
                self._free(session)
                self._device.scheduler.warm_up_again(self.queue)  # memory was freed: the last warm-up may have had none
            self._device.scheduler.forget(self.queue, session)
        except Exception as error:  # whatever an engine raises here
            self._fail(pending, error)
        else:
            pending.settle(Output(values=torch.empty(0)))

    def _free(self, session: HeldSequences) -> None:
        self._device.memory.kept.drop(session)
        session.sequences = steps.close_all(self._engines.of(session), session.sequences)
        self._hold(session)

    def _keep(self, session: HeldSequences) -> None:
        self.holdings.add(session.client, -session.num_tokens)
        self.holdings.add(NO_CLIENT, session.num_tokens)
        self._device.memory.kept.add(session, lambda: self._free(session))

    def _fork(self, request: Fork) -> None:
        """CacheFullError if the sequences were kept, and have been freed for others; BadRequestError if they have too few tokens."""
        session, source, engine = request.session, request.source, self._engines.of(request.session)
        self._free(session)
        if not source.sequences:
            raise CacheFullError("what this session begins with was freed for others: send it anew")
        left_out = row_operations.left_out(source.sequences, request.tokens)
        self._device.memory.kept.use(source)
        self._device.memory.lend(engine)
        session.sequences = steps.forks(engine, source.sequences)
        self._hold(session)
        if left_out:
            engine.crop(session.sequences[0], left_out)
            self._hold(session)

    def warm_up(self) -> bool:
        """Capture one graph, if there is one more to capture."""
        with computing():
            return self._engines.warm_up()

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> None:
        """One batch: operations on sequences, one forward, and each finished step's output to its caller."""
        entered = [(chunk, rows) for chunk in chunks if (rows := self._enter(chunk)) is not None]
        if not entered:
            return
        started = time.perf_counter()
        batch, outputs = self.forwards.run(entered)
        ms = (time.perf_counter() - started) * 1e3
        done = [chunk for chunk, _ in batch]
        if done:
            self._note(done, outputs, ms)
            self._device.scheduler.account(self.queue, done, ms)

    def _note(self, done: Sequence[Chunk], outputs: Sequence[Output], ms: float) -> None:
        """Note what has run, in a forward of `ms`; settle each step that has run to its end."""
        for chunk, output in zip(done, outputs, strict=True):
            chunk.pending.outputs.append(output)
            chunk.pending.compute_ms += ms
            self._hold(chunk.step.session)
            self.work.note(chunk.step.session, chunk.size)
            self._device.tally.note(chunk.step.session, chunk.size, is_last=chunk.is_last)
        self._device.scheduler.finished(self.queue, done)
        for chunk in done:
            if chunk.is_last:
                chunk.pending.settle(self._timed(chunk.pending))

    def _timed(self, pending: Pending) -> Output:
        """The whole output of a step that has run."""
        passed_ms = (self._device.clock.now_s() - pending.came_s) * 1e3
        queue_ms = max(0.0, passed_ms - pending.compute_ms)
        return replace(edges.joined(pending.outputs), queue_ms=queue_ms, compute_ms=pending.compute_ms)

    def _enter(self, chunk: Chunk) -> list[TokenSequence] | None:
        """The step's sequences after its operations; None if the step is settled already (an error, no tokens)."""
        pending, step = chunk.pending, chunk.step
        try:
            if self._device.clock.now_s() > step.expires_s:
                raise DeadlineError("the step's time budget ended while it waited here: this peer is too busy, try a replica")
            if not pending.is_entered:
                self._begin(chunk)
        except Exception as error:  # whatever an engine raises here: the thread must live
            self._fail(pending, error)
            return None
        if not pending.num_tokens:
            whole = self._engines.whole
            nothing = torch.empty(0, whole.hidden_size, dtype=whole.dtype)
            pending.settle(edges.finish(self._ends, [chunk], nothing)[0])
            return None
        return step.session.sequences

    def _begin(self, chunk: Chunk) -> None:
        """Before a step's first prefill chunk: its operations on sequences, then checks of memory and positions for all of it."""
        pending, step, session = chunk.pending, chunk.step, chunk.step.session
        engine, memory, now_s = self._engines.of(session), self._device.memory, self._device.clock.now_s()
        memory.lend(engine)
        if step.ops:
            self._operate(engine, pending, step)
        session.sequences = row_operations.enter(engine, session.sequences, len(step.counts))
        steps.check_size(step, pending.num_tokens, session.sequences, self._max_positions)
        items = [(row, count) for row, count in zip(session.sequences, step.counts, strict=True) if count]
        if len(memory.kept):
            memory.make_room(engine.growth_bytes(items))
            memory.lend(engine)
        is_cut = chunk.size < pending.num_tokens
        if (pending.num_tokens or pending.copies) and (is_cut or memory.is_short(session.client, now_s)):
            memory.judge(session.client, engine.growth_bytes(items), pending.num_tokens, now_s, is_new=False)
        pending.is_entered = True

    def _operate(self, engine: Engine, pending: Pending, step: Step) -> None:
        """A step's operations on sequences. Its client is charged for their time, and holds the copies at once."""
        started = time.perf_counter()
        try:
            step.session.sequences = row_operations.apply(engine, step.session.sequences, step.ops)
            wait_for(engine.device)
        finally:
            self._device.scheduler.charge(self.queue, pending, (time.perf_counter() - started) * 1e3)
        self._hold(step.session)

    def _hold(self, session: HeldSequences) -> None:
        """Note what a session holds after its sequences have changed."""
        before, session.num_tokens = session.num_tokens, sum([row.length for row in session.sequences])
        self.holdings.add(NO_CLIENT if session.is_kept else session.client, session.num_tokens - before)

    def _fail(self, pending: Pending, error: Exception) -> None:
        """Settle the request with the error, and close the session's sequences: its client starts anew, here or at a replica."""
        session = pending.request.session
        try:
            session.sequences = steps.close_all(self._engines.of(session), session.sequences)
            self._hold(session)
        except Exception:
            log.exception("sequences of a failed step could not be closed")
        if not isinstance(error, SwarmError):
            log.error("a step failed on the device", exc_info=error)
            error = InternalError(f"the forward failed here: {type(error).__name__}; the peer's log says more")
        pending.settle(error)
