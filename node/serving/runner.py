"""One host's work on its device: engines, sequences, and step results.

Sessions that run a part of the blocks only have an engine of their own (`part_engines.py`), and share thread and memory. A step that
fails takes no other step with it: a batch that fails as a whole is run again one by one, and only those that fail alone get the error.

A long step is run in prefill chunks, as the schedule cuts it: its row operations come before the first, memory for all of it is asked
for then, and its caller gets the whole output after the last. Whatever ends it in between (no memory, its deadline, an error) loses the
session's rows, exactly as for a step that runs at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from node.device.host_queue import HostQueue
from node.device.memory import Holdings
from node.device.pending import Chunk, Pending
from node.device.thread import Device
from node.device.work import Fork, HeldRows, Request, Step
from node.hardware import wait_for
from node.serving import batch as edges
from node.serving import step as steps
from node.serving.part_engines import MakePart, PartEngines
from node.serving.step import Batch
from node.serving.worked import WorkCounter
from protocols.errors import DeadlineError, InternalError, OverloadedError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId
from swarm import trace
from swarm.inference import rows as row_operations
from swarm.inference.compute import Output
from swarm.models.default_dtype import computing

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine, TokenSequence

log = logging.getLogger(__name__)


class Runner:
    """Runs an engine on a device. `start`, then `run` from any event loop, then `stop`."""

    def __init__(
        self,
        engine: Engine,
        budget_tokens: int = 1_024,
        max_positions: int | None = None,
        token_bytes: int = 0,
        ends: Ends | None = None,
        make_part: MakePart | None = None,
        device: Device | None = None,
    ) -> None:
        """budget_tokens: new tokens of all sessions in one forward. max_positions: longest sequence; None = no limit.

        token_bytes: what one token of a row takes at least; 0 = not known, then a new session is judged at its turn only.
        ends: embedding, norm and head; None = only blocks are hosted. make_part: an engine of some of the blocks.
        device: shared with other hosts; None = its own.
        """
        self.engine, self.ends, self.device = engine, ends, device or Device()
        self.engines = PartEngines(engine, self.device.memory, make_part, self._warm_up_again)
        self._budget_tokens, self._max_positions, self._token_bytes = budget_tokens, max_positions, token_bytes
        self.holdings = Holdings()
        self.work = WorkCounter()
        self.num_forwards = 0
        self.num_steps = 0
        self.largest_batch = 0
        """Most steps that ever shared a forward."""
        self.step_ms = 0.0
        """Moving average of a forward's milliseconds, through all blocks."""
        self._queue: HostQueue | None = None

    @property
    def is_running(self) -> bool:
        return self._queue is not None and not self._queue.ended.is_set()

    @property
    def queue(self) -> HostQueue:
        """What waits here; OverloadedError before `start`."""
        if self._queue is None:
            raise OverloadedError("this peer is still starting: try a replica")
        return self._queue

    def start(self, budget_bytes: int = 0) -> None:
        """budget_bytes: as `Memory.enter` has it."""
        self.device.memory.enter(self.engines, self.holdings, self.engine.limit_bytes, budget_bytes)
        self._queue = self.device.attach(self, self._budget_tokens)

    async def stop(self) -> None:
        """Run what waits, then leave the device. A second call changes nothing."""
        if self._queue is not None:
            await self.device.detach(self._queue)
            self.device.memory.leave(self.engines)

    def submit(self, request: Request) -> Pending:
        """Ask for something; `outcome` waits for it."""
        return self.device.submit(self.queue, request)

    async def outcome(self, pending: Pending) -> Output:
        """Raises what was found wrong with the request. If the caller is cancelled, what is left of a step is not run."""
        assert pending.future is not None
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending.is_step:  # a clearing is done all the same: others wait for the memory
                self.device.scheduler.cancel(self.queue, pending)
            raise

    def abandon(self, pending: Pending) -> None:
        """Its session is over: what is left of it is not run, and its `outcome` raises at once."""
        self.device.scheduler.cancel(self.queue, pending)
        if pending.future is not None and not pending.future.done():
            pending.future.set_exception(PeerUnreachableError("the session was closed while its step was computed"))

    def admit(self, client: PeerId, num_tokens: int) -> None:
        """CacheFullError for a new session's first step that cannot succeed: at once, not after a turn in the queue."""
        now_s = self.device.clock.now_s()
        self.device.memory.judge(client, num_tokens * self._token_bytes, num_tokens, now_s, is_new=True)

    def _warm_up_again(self) -> None:
        self.device.scheduler.warm_up_again(self.queue)

    def engine_of(self, session: HeldRows) -> Engine:
        """The engine that runs a session's blocks."""
        return session.engine or self.engine

    # --- in the device's thread

    def change(self, pending: Pending) -> None:
        """Give a session's rows back, or let it begin with another one's."""
        request, session = pending.request, pending.request.session
        try:
            engine = self.engine_of(session)
            session.rows = steps.close_all(engine, session.rows)
            if isinstance(request, Fork):
                self.device.memory.lend(engine)
                session.rows = steps.forks(engine, request.source.rows)
            self._hold(session)
            self.device.scheduler.forget(self.queue, session)
        except Exception as error:  # whatever an engine raises here
            self._fail(pending, error)
        else:
            pending.settle(Output(values=torch.empty(0)))

    def warm_up(self) -> bool:
        """Capture one graph, if there is one more to capture."""
        with computing():
            return self.engines.warm_up()

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> None:
        """One batch: row operations, one forward, the outputs back."""
        entered = [(chunk, rows) for chunk in chunks if (rows := self._enter(chunk)) is not None]
        if not entered:
            return
        started = time.perf_counter()
        batch, outputs = self._forward_each(entered)
        ms = (time.perf_counter() - started) * 1e3
        done = [chunk for chunk, _ in batch]
        if done:
            self._note(done, outputs)
            self.device.scheduler.account(self.queue, done, ms)

    def _note(self, done: Sequence[Chunk], outputs: Sequence[Output]) -> None:
        """These have run; a step whose last chunk it was is settled."""
        for chunk, output in zip(done, outputs, strict=True):
            chunk.pending.outputs.append(output)
            self._hold(chunk.step.session)
            self.work.note(chunk.step.session, chunk.size)
        self.device.scheduler.finished(self.queue, done)
        for chunk in done:
            if chunk.is_last:
                chunk.pending.settle(edges.joined(chunk.pending.outputs))

    def _forward_each(self, entered: Batch) -> tuple[Batch, list[Output]]:
        """One forward for all steps of the same blocks, which are mostly all of ours. Those that succeed, and their outputs."""
        groups: dict[Engine, Batch] = {}
        for chunk, rows in entered:
            groups.setdefault(self.engine_of(chunk.step.session), []).append((chunk, rows))
        succeeded: Batch = []
        outputs: list[Output] = []
        for engine, batch in groups.items():
            lengths = [[row.length for row in rows] for _, rows in batch]
            try:
                made = self._forward(engine, batch)
            except Exception as error:
                batch, made = self._one_by_one(engine, batch, lengths, error)
            succeeded += batch
            outputs += made
        return succeeded, outputs

    def _forward(self, engine: Engine, batch: Batch) -> list[Output]:
        started = time.perf_counter()
        for chunk, _ in batch:
            if not chunk.at:
                trace.mark("computing", chunk.step.session.id, -1)
        self.device.memory.lend(engine)
        outputs = steps.forward(engine, self.ends, batch)
        # If no output of a prefill chunk is wanted, nothing has waited for it yet; but costs are learnt from its time.
        wait_for(engine.device)
        self._count(len(batch), (time.perf_counter() - started) * 1e3, is_whole=engine is self.engine)
        for chunk, _ in batch:
            if chunk.is_last:
                trace.mark("forwarded", chunk.step.session.id, -1)
        return outputs

    def _one_by_one(self, engine: Engine, batch: Batch, lengths: list[list[int]], error: Exception) -> tuple[Batch, list[Output]]:
        """The batch failed: run its steps again, each alone, from where they stood before. Those that succeed, and their outputs."""
        succeeded: Batch = []
        outputs = []
        for (chunk, rows), before in zip(batch, lengths, strict=True):
            try:
                steps.rewind(engine, rows, before)
                if len(batch) == 1:
                    raise error
                outputs += self._forward(engine, [(chunk, rows)])
                succeeded.append((chunk, rows))
            except Exception as own:
                self._fail(chunk.pending, own)
        return succeeded, outputs

    def _enter(self, chunk: Chunk) -> list[TokenSequence] | None:
        """The step's rows after its operations; None if it is settled already (an error, no tokens)."""
        pending, step = chunk.pending, chunk.step
        try:
            if self.device.clock.now_s() > step.expires_s:
                raise DeadlineError("the step's time budget was over before its turn came: this peer is too busy, try a replica")
            if not pending.is_entered:
                self._begin(chunk)
        except Exception as error:  # whatever an engine raises here: the thread must live
            self._fail(pending, error)
            return None
        if not pending.num_tokens:
            nothing = torch.empty(0, self.engine.hidden_size, dtype=self.engine.dtype)
            pending.settle(edges.finish(self.ends, [chunk], nothing)[0])
            return None
        return step.session.rows

    def _begin(self, chunk: Chunk) -> None:
        """Before a step's first chunk: its row operations, and whether all of it may run here."""
        pending, step, session = chunk.pending, chunk.step, chunk.step.session
        engine, memory, now_s = self.engine_of(session), self.device.memory, self.device.clock.now_s()
        memory.lend(engine)
        if step.ops:
            self._operate(engine, pending, step)
        session.rows = row_operations.enter(engine, session.rows, len(step.counts))
        steps.check_size(step, pending.num_tokens, session.rows, self._max_positions)
        is_cut = chunk.size < pending.num_tokens
        if (pending.num_tokens or pending.copies) and (is_cut or memory.is_short(session.client, now_s)):
            items = [(row, count) for row, count in zip(session.rows, step.counts, strict=True) if count]
            memory.judge(session.client, engine.growth_bytes(items), pending.num_tokens, now_s, is_new=False)
        pending.is_entered = True

    def _operate(self, engine: Engine, pending: Pending, step: Step) -> None:
        """A step's row operations. Their time goes on its client's account, and copied rows count as what it holds, at once."""
        started = time.perf_counter()
        try:
            step.session.rows = row_operations.apply(engine, step.session.rows, step.ops)
            wait_for(engine.device)
        finally:
            self.device.scheduler.charge(self.queue, pending, (time.perf_counter() - started) * 1e3)
        self._hold(step.session)

    def _hold(self, session: HeldRows) -> None:
        """Note what a session holds after its rows have changed."""
        before, session.num_tokens = session.num_tokens, sum([row.length for row in session.rows])
        self.holdings.add(session.client, session.num_tokens - before)

    def _fail(self, pending: Pending, error: Exception) -> None:
        """The request is lost, and the session's rows with it (it starts anew, here or elsewhere)."""
        session = pending.request.session
        try:
            session.rows = steps.close_all(self.engine_of(session), session.rows)
            self._hold(session)
        except Exception:
            log.exception("rows of a failed step could not be closed")
        if not isinstance(error, SwarmError):
            log.error("a step failed on the device", exc_info=error)
            error = InternalError(f"the forward failed here: {type(error).__name__}; the peer's log says more")
        pending.settle(error)

    def _count(self, num_steps: int, ms: float, *, is_whole: bool) -> None:
        self.num_forwards += 1
        self.num_steps += num_steps
        self.largest_batch = max(self.largest_batch, num_steps)
        if is_whole:
            self.step_ms = 0.9 * self.step_ms + 0.1 * ms if self.step_ms else ms
