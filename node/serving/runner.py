"""The one thread that owns the device: takes a batch, runs it through the span, hands the pieces back.

Sessions that run a part of the blocks only have an engine of their own (`part_engines.py`), and share the thread and the memory.
This thread never waits for the network, and the event loop computes nothing but a short decode of a session that is alone, which is
done before two threads would have changed places twice (`HERE_MS`). A step that fails takes no other step with it:
a batch that fails as a whole is run again one by one, and only those that fail alone get the error.

A long step is run in pieces, as `scheduler.py` cuts it: its row operations come before the first, memory for all of it is asked for
then, and its caller gets the whole output after the last. Whatever ends it in between (no memory, its deadline, an error) loses the
session's rows, exactly as for a step that runs at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from node.hardware import wait_for
from node.serving import batch as edges
from node.serving import memory
from node.serving.part_engines import MakePart, PartEngines
from node.serving.scheduler import HeldRows, Job, Scheduler
from node.serving.work import Work
from protocols.defaults import MAX_STEP_TOKENS
from protocols.errors import (
    BadRequestError,
    CacheFullError,
    DeadlineError,
    InternalError,
    SwarmError,
)
from protocols.ids import PeerId
from protocols.words import counted
from swarm.inference import rows as row_operations
from swarm.inference import trace
from swarm.inference.compute import Output
from swarm.models.default_dtype import computing

if TYPE_CHECKING:
    from node.serving.ends import Ends
    from node.serving.engine import Engine, Row

log = logging.getLogger(__name__)

HERE_MS = 5.0
"""A lone decode that should take no longer is computed where it arrives, on the event loop's thread: so long may Python itself let one
thread wait for another (`sys.getswitchinterval`)."""

HERE_COPIED_ROWS, HERE_COPIED_BYTES = 64, 8 << 20
"""Limits, in rows after the operations and in bytes copied, of a decode that runs on the event loop's thread although its operations
copy rows. Larger ones run in the runner's thread, which costs a 3 ms decode a tenth more."""

PRACTISE_AFTER_S = 0.1
"""Idle for so long, the engine practises: nobody has a row here."""
PRACTISE_BESIDE_S = 1.0
"""The same where somebody has: the next token is on its way."""
PRACTICE_S = 1.0
"""Where one lesson takes longer, it was the last: a newcomer may have to wait for it."""

Batch: TypeAlias = "list[tuple[Job, list[Row]]]"


class Runner:
    """Runs an engine in a thread of its own. `start`, then `run` from any event loop, then `stop`."""

    def __init__(
        self,
        engine: Engine,
        budget_tokens: int = 1_024,
        max_positions: int | None = None,
        token_bytes: int = 0,
        ends: Ends | None = None,
        make_part: MakePart | None = None,
    ) -> None:
        """max_positions: longest row, and first position too many; None = the architecture has no such limit.

        token_bytes: what one token of a row takes at least; 0 = not known, then a new session is judged at its turn only.
        ends: embedding, norm and head; None = only blocks are hosted. make_part: an engine of some of the blocks.
        """
        self.engine, self.ends = engine, ends
        self.engines = PartEngines(engine, make_part)
        self._max_positions, self._token_bytes = max_positions, token_bytes
        self.holdings = memory.Holdings()
        self.scheduler = Scheduler(budget_tokens)
        self.work = Work()
        self.num_forwards = 0
        self.num_steps = 0
        self.largest_batch = 0
        """Most steps that ever shared a forward."""
        self.step_ms = 0.0
        """Moving average of a forward's milliseconds, through all blocks."""
        self._may_practise = True
        self._device = threading.Lock()
        """Held by whoever runs a batch."""
        self._thread = threading.Thread(target=self._loop, name="runner", daemon=True)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Run what waits, then end the thread."""
        self.scheduler.close()
        if self.is_running:
            await asyncio.to_thread(self._thread.join)

    async def run(self, make_job: Callable[[Callable[[Output | SwarmError], None]], Job]) -> Output:
        """Submit a job and wait for its outcome; raises what the runner found wrong with it."""
        outcomes: list[Output | SwarmError] = []
        job = make_job(outcomes.append)
        if not self._run_here(job):
            return await self._run_there(job)
        asyncio.get_running_loop().call_soon(self.scheduler.pay)  # its output is sent before the loop's next turn
        if isinstance(outcomes[0], SwarmError):
            raise outcomes[0]
        return outcomes[0]

    async def _run_there(self, job: Job) -> Output:
        """In the runner's thread, in its turn."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Output] = loop.create_future()

        def done(outcome: Output | SwarmError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more, and this thread goes on
                loop.call_soon_threadsafe(_settle, future, outcome)

        job.done = done
        self.scheduler.submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            if job.values is not None:  # a clearing is done all the same: others wait for the memory
                self.scheduler.cancel(job)
            raise

    def admit(self, client: PeerId, num_tokens: int) -> None:
        """CacheFullError for a new session's first step that cannot succeed: at once, not after a turn in the queue."""
        self._judge(client, num_tokens * self._token_bytes, num_tokens, is_new=True)

    def _judge(self, client: PeerId, needed_bytes: int, num_tokens: int, *, is_new: bool) -> None:
        used, limit, now_s = self.engines.used_bytes, self.engines.limit_bytes, time.monotonic()
        reason = memory.reason_against(
            needed=needed_bytes, free=limit - used, limit=limit, held_by_client=used * self.holdings.part_of(client),
            num_clients=self.holdings.num_clients(client, now_s), is_wanted=self.holdings.is_wanted(client, now_s), is_new=is_new,
        )  # fmt: skip
        if reason is not None:
            self.holdings.refused(client, now_s)
            raise CacheFullError(
                f"no memory for {counted(num_tokens, 'more token')}: {reason}; they take {needed_bytes} bytes, "
                f"{limit - used} of {limit} are free; end a session, or ask another peer"
            )

    def _run_here(self, job: Job) -> bool:
        """Run a job at once in this thread, where that is the sooner way. On other devices it would hold the loop for no gain."""
        if self.engine.device.type != "cpu" or not self.is_running or not self._device.acquire(blocking=False):
            return False
        try:
            if self._copies_much(job) or not self.scheduler.take_alone(job, HERE_MS):
                return False
            self._step([job])
            return True
        finally:
            self._device.release()

    def _loop(self) -> None:
        while (jobs := self.scheduler.take(self._practise_after_s())) is not None:
            with self._device:
                if jobs:
                    self._step(jobs)
                else:
                    self._practise()

    def _practise_after_s(self) -> float | None:
        """How long nothing must have come before the engine practises; None: it has learnt what there is."""
        if not self._may_practise:
            return None
        return PRACTISE_BESIDE_S if self.engines.used_bytes else PRACTISE_AFTER_S

    def _practise(self) -> None:
        """While nobody waits, the engine gets faster."""
        started = time.perf_counter()
        try:
            with computing():
                has_more = self.engines.practise()
        except Exception:  # nobody asked for it
            log.exception("the engine could not practise")
            has_more = False
        self._may_practise = has_more and time.perf_counter() - started < PRACTICE_S

    @torch.inference_mode()
    def _step(self, jobs: list[Job]) -> None:
        """One batch: row operations, one forward, the pieces back."""
        entered = [(job, rows) for job in jobs if (rows := self._enter(job)) is not None]
        if not entered:
            return
        started = time.perf_counter()
        batch, outputs = self._forward_each(entered)
        ms = (time.perf_counter() - started) * 1e3
        for (job, _), output in zip(batch, outputs, strict=True):
            job.outputs.append(output)
            self._hold(job.session)
            self.work.note(job.session, job.size)
        finished = [job for job, _ in batch]

        self.scheduler.finished(finished, ms)
        for job in finished:
            if not job.num_left:
                job.done(edges.joined(job.outputs))

    def _forward_each(self, entered: Batch) -> tuple[Batch, list[Output]]:
        """One forward for all jobs of the same blocks, which are mostly all of ours. Those that succeed, and their outputs."""
        groups: dict[Engine, Batch] = {}
        for job, rows in entered:
            groups.setdefault(self.engine_of(job.session), []).append((job, rows))
        succeeded: Batch = []
        outputs: list[Output] = []
        for batch in groups.values():
            lengths = [[row.length for row in rows] for _, rows in batch]
            try:
                made = self._forward(batch)
            except Exception as error:
                batch, made = self._one_by_one(batch, lengths, error)
            succeeded += batch
            outputs += made
        return succeeded, outputs

    def engine_of(self, session: HeldRows) -> Engine:
        """Who runs a session's blocks."""
        return session.engine or self.engine

    def _enter(self, job: Job) -> list[Row] | None:
        """The job's rows after its operations; None where it is done already (a clearing, an error, no tokens)."""
        session = job.session
        try:
            if job.values is None:
                session.rows = _close_all(self.engine_of(session), session.rows)
                if job.source is not None:
                    self.engines.lend(self.engine_of(session))
                    session.rows = _forks(self.engine_of(session), job.source.rows)
                self._hold(session)
                self.scheduler.forget(session)
                job.done(Output(values=torch.empty(0)))
                return None
            if time.monotonic() > job.expires_s:
                raise DeadlineError("the step's time budget was over before its turn came: this peer is too busy, try a replica")
            if not job.is_entered:
                self._begin(job)
        except Exception as error:  # whatever an engine raises here: this thread must live
            self._fail(job, error)
            return None
        if not job.num_tokens:
            job.done(edges.finish(self.ends, [job], torch.empty(0, self.engine.hidden_size, dtype=self.engine.dtype))[0])
            return None
        return session.rows

    def _begin(self, job: Job) -> None:
        """Before a job's first piece: its row operations, and whether all of it may run here."""
        session = job.session
        engine = self.engine_of(session)
        self.engines.lend(engine)
        if job.ops:
            self._operate(engine, job)
        session.rows = row_operations.enter(engine, session.rows, len(job.counts))
        _check_size(job, session.rows, self._max_positions)
        if (job.num_tokens or job.copies) and self._is_short(job):
            items = [(row, count) for row, count in zip(session.rows, job.counts, strict=True) if count]
            self._judge(session.client, engine.growth_bytes(items), job.num_tokens, is_new=False)
        job.is_entered = True

    def _operate(self, engine: Engine, job: Job) -> None:
        """A job's row operations. Their time goes on its client's account, and copied rows count as what it holds, at once."""
        started, session = time.perf_counter(), job.session
        try:
            session.rows = row_operations.apply(engine, session.rows, job.ops)
            wait_for(engine.device)
        finally:
            self.scheduler.charge(job, (time.perf_counter() - started) * 1e3)
        self._hold(session)

    def _copies_much(self, job: Job) -> bool:
        """Too much for the event loop's thread: no forward that was measured has told how long these copies take."""
        if not job.copies:
            return False
        with contextlib.suppress(BadRequestError):  # it is refused in a moment
            plan = row_operations.plan([row.length for row in job.session.rows], job.ops)
            num_bytes = plan.num_copied_tokens * self._token_bytes
            return len(plan.sources) > HERE_COPIED_ROWS or num_bytes > HERE_COPIED_BYTES
        return False

    def _is_short(self, job: Job) -> bool:
        """Is it worth asking who may take what, and for all pieces at once? Else the engine itself refuses what does not fit."""
        free = self.engines.limit_bytes - self.engines.used_bytes
        is_wanted = self.holdings.is_wanted(job.session.client, time.monotonic())
        return is_wanted or job.size < job.num_tokens or free < 2 * memory.SHORT * self.engines.limit_bytes

    def _hold(self, session: HeldRows) -> None:
        """Note what a session holds after its rows have changed."""
        before, session.num_tokens = session.num_tokens, sum([row.length for row in session.rows])
        self.holdings.add(session.client, session.num_tokens - before)

    def _forward(self, batch: Batch) -> list[Output]:
        started = time.perf_counter()
        for job, _ in batch:
            if not job.at:
                trace.mark("computing", job.session.id, -1)
        items = [(row, count) for job, rows in batch for row, count in zip(rows, job.piece_counts(), strict=True) if count]
        engine = self.engine_of(batch[0][0].session)
        self.engines.lend(engine)
        with computing():  # the node may be loading another span in another thread
            hidden = edges.begin(engine, self.ends, batch)
            output = engine.step(items, hidden[None], _positions(batch, engine.device))[0]
            outputs = edges.finish(self.ends, [job for job, _ in batch], output)
        # If no output of a prefill chunk is wanted, nothing has waited for it yet; but costs are learnt from its time.
        wait_for(engine.device)
        self._count(len(batch), (time.perf_counter() - started) * 1e3, is_whole=engine is self.engine)
        for job, _ in batch:
            if not job.num_left - job.size:
                trace.mark("forwarded", job.session.id, -1)
        return outputs

    def _one_by_one(self, batch: Batch, lengths: list[list[int]], error: Exception) -> tuple[Batch, list[Output]]:
        """The batch failed: run its steps again, each alone, from where they stood before. Those that succeed, and their outputs."""
        succeeded: Batch = []
        outputs = []
        for (job, rows), before in zip(batch, lengths, strict=True):
            try:
                _rewind(self.engine_of(job.session), rows, before)
                if len(batch) == 1:
                    raise error
                outputs += self._forward([(job, rows)])
                succeeded.append((job, rows))
            except Exception as own:
                self._fail(job, own)
        return succeeded, outputs

    def _fail(self, job: Job, error: Exception) -> None:
        """The step is lost, and the session's rows with it (it starts anew, here or elsewhere)."""
        try:
            job.session.rows = _close_all(self.engine_of(job.session), job.session.rows)
            self._hold(job.session)
        except Exception:
            log.exception("rows of a failed step could not be closed")
        if not isinstance(error, SwarmError):
            log.error("a step failed on the device", exc_info=error)
            error = InternalError(f"the forward failed here: {type(error).__name__}; the peer's log says more")
        job.done(error)

    def _count(self, num_steps: int, ms: float, *, is_whole: bool) -> None:
        self.num_forwards += 1
        self.num_steps += num_steps
        self.largest_batch = max(self.largest_batch, num_steps)
        if is_whole:
            self.step_ms = 0.9 * self.step_ms + 0.1 * ms if self.step_ms else ms


def _check_size(job: Job, rows: Sequence[Row], max_positions: int | None) -> None:
    """BadRequestError for what would cost everybody here: a step without end, or places for which the model has no table.

    A rotary table that is stretched for one row is stretched for the whole batch, and an index beyond a table ends a GPU's context.
    """
    if job.num_tokens > MAX_STEP_TOKENS:
        raise BadRequestError(f"a step has at most {MAX_STEP_TOKENS} tokens here, got {job.num_tokens}: send it in chunks")
    longest = max([row.length + count for row, count in zip(rows, job.counts, strict=True)], default=0)
    if job.positions is not None and len(job.positions):
        longest = max(longest, int(job.positions.max()) + 1)
    if max_positions is not None and longest > max_positions:
        raise BadRequestError(
            f"this model has places for {counted(max_positions, 'token')} of a row, the step needs place {longest}: shorten it"
        )


def _settle(future: asyncio.Future[Output], outcome: Output | SwarmError) -> None:
    if future.done():
        return
    if isinstance(outcome, SwarmError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _rewind(engine: Engine, rows: Sequence[Row], lengths: Sequence[int]) -> None:
    """Take back what a failed forward had appended before it failed; raises where the engine cannot."""
    for row, length in zip(rows, lengths, strict=True):
        if row.length != length:
            engine.crop(row, row.length - length)


def _close_all(engine: Engine, rows: Sequence[Row]) -> list[Row]:
    for row in rows:
        engine.close(row)
    return []


def _forks(engine: Engine, rows: Sequence[Row]) -> list[Row]:
    forks: list[Row] = []
    try:
        for row in rows:
            forks.append(engine.fork(row))
    except BaseException:
        _close_all(engine, forks)
        raise
    return forks


def _positions(batch: Batch, device: torch.device) -> Tensor | None:
    """Positions of all tokens where any step brings its own; the others count on from their rows' lengths."""
    if all(job.positions is None for job, _ in batch):
        return None
    return torch.cat([edges.places(job, rows) for job, rows in batch]).to(device)
