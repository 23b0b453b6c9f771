"""A session's sequences at one hop, and their next step.

Steps and parts of a history are computed once each, in order. The output goes to the hop below or to the client.
The sequences stay when the route changes; `hop.py` decides which messages reach them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from protocols import tensors, timings
from protocols.errors import SwarmError
from protocols.ids import short
from protocols.inference import Fork, History, Step
from protocols.timings import HopTime
from swarm import faults, measured, trace
from swarm.inference.downstream import Downstream
from swarm.inference.hop import process_step
from swarm.inference.hop.answers import Answers
from swarm.inference.hop.compute import SessionCompute
from swarm.inference.hop.place import Place
from swarm.inference.hop.upstream import Upstream
from swarm.inference.pieces import PieceRow
from swarm.inference.retained import Loading

log = logging.getLogger(__name__)


class Sequences:
    """One call at a time, but for `abandon`. If a step cannot be computed, the hop reports itself lost, and holds nothing afterwards."""

    def __init__(self, compute: SessionCompute, up: Upstream, down: Downstream, answers: Answers) -> None:
        self.next_step = 0
        self.is_computing = False
        self.has_given_up = False
        """We reported ourselves lost: whatever is still in flight for us is void until a new route wants us again."""
        self.loading: Loading | None = None
        """A history that is coming in."""
        self._compute, self._up, self._down, self._answers = compute, up, down, answers
        self._is_over = False
        self.keep_s = 0
        """Seconds for which they stay for forks after the session has ended; 0: not at all."""
        self._is_last = False
        """They are those of the last hop: what came of them was not retained."""

    def is_at_rest(self, step: int) -> bool:
        """Are the sequences what they were before `step`, and not about to change?"""
        is_busy = self.is_computing or self.loading is not None or self.has_given_up or self._is_over
        return self.next_step == step and not is_busy

    @property
    def num_bytes(self) -> int:
        """Of activations that are kept for hops below."""
        return self._down.retained.num_bytes

    @property
    def holds_tokens(self) -> bool:
        """There are tokens that another session may begin with."""
        return self._compute.holds_tokens

    # --- steps

    async def take_step(self, step: Step, place: Place) -> None:
        """Compute the step that is waited for. An earlier one is answered with what was kept, a later one with `Expect`."""
        if self.has_given_up:
            return
        if step.step > self.next_step:
            if not self._up.is_waiting:
                self._up.expect(place.grant, self.next_step)
        elif step.step < self.next_step:
            self._repeat(step.step, place)
        else:
            if self.loading is not None:  # a history broke off, and the hop above now begins with step 0
                await self.forget()
            await self._advance(step, place)

    def _repeat(self, number: int, place: Place) -> None:
        if place.is_last:
            self._answers.repeat(number)
        else:
            self._down.resend(number)

    async def _advance(self, step: Step, place: Place) -> None:
        self._up.is_waiting = False
        self._is_last = place.is_last
        faults.point("before_compute", step.step)
        trace.mark("received", step.session, step.step, step.payload.num_bytes)
        started = time.perf_counter()
        self.is_computing = True
        try:
            output = await process_step.process_step(self._compute, step, place)
        except SwarmError as error:
            await self.give_up(error, place)
            return
        finally:
            self.is_computing = False
        faults.point("after_compute", step.step)
        trace.mark("computed", step.session, step.step, output.values.num_bytes)
        self.next_step += 1
        spent_ms = (time.perf_counter() - started) * 1e3
        spent = HopTime(index=place.index, queue_ms=output.queue_ms, compute_ms=output.compute_ms, total_ms=spent_ms)
        measured.hop_step(step, spent, output.num_bytes)
        times = timings.appended(step.times, spent)
        if place.is_last:
            self._answers.add(process_step.reply_to(step, output, spent_ms, times))
        else:
            budget_ms = max(0, step.budget_ms - round(spent_ms))
            self._down.send(replace(step, spec=step.spec.below(), payload=output.values, budget_ms=budget_ms, times=times))

    # --- replay

    async def take_history(self, history: History, place: Place) -> None:
        """Start anew from the sequences' inputs before step `base`; our outputs become our own retained history."""
        if self.has_given_up:
            return
        if history.part == 0:
            await self.forget()
            self.loading = Loading(history.base, history.parts, [PieceRow() for _ in history.counts])
        if self.loading is None or not self.loading.is_next(history):
            if not self._up.is_waiting:
                await self.forget()
                self._up.expect(place.grant, self.next_step)
            return
        self._up.is_waiting = False
        faults.point("before_history", history.base)
        self.is_computing = True
        try:
            output = (await process_step.process_step(self._compute, history, place)).values
        except SwarmError as error:
            await self.give_up(error, place)
            return
        finally:
            self.is_computing = False
        self.loading.take(history, None if place.is_last else output)
        if self.loading.is_complete:
            self.next_step, self._is_last = history.base, place.is_last
            self._down.retained.load(history.base, [] if place.is_last else self.loading.rows, tensors.cut(output, 0, 0))
            self.loading = None
            self._down.pump()
        faults.point("after_history", history.base)

    async def fork(self, source: Sequences, fork: Fork, place: Place) -> None:
        """Begin as a copy of another session's sequences, or of their first tokens, if they are here; else the history is sent."""
        if self.next_step or not source._can_lend(fork) or source._is_last != place.is_last:
            return
        try:
            retained = None if place.is_last else source._down.retained.fork(fork.tokens, fork.step)
            await self._compute.fork(source._compute, fork.tokens)
        except SwarmError as error:
            log.info("%s: the sequences of session %s cannot be copied: %s", place, short(fork.session), error)
            return
        if not source._can_lend(fork):  # they may be those of a later step
            await self._compute.clear()
            return
        self.next_step, self._is_last = fork.step, place.is_last
        if retained is None:
            self._down.retained.load(fork.step, [])
        else:
            self._down.retained = retained

    def _can_lend(self, fork: Fork) -> bool:
        """First tokens also while more are computed: the device and the boundary say if there are as many."""
        return fork.tokens > 0 or self.is_at_rest(fork.step)

    # --- the end

    async def give_up(self, error: SwarmError, place: Place) -> None:
        """We cannot compute this session any further: report ourselves lost and let the client choose another."""
        if self._is_over:
            return
        log.info("%s: gives up: %s", place, error)
        self.has_given_up = True
        # first of all: freeing sequences waits for the forward that runs, and the client need not
        self._up.tell(place.lost(place.index, error), self._answers.wire)
        await self.forget()

    async def forget(self) -> None:
        """Hold nothing: what comes next is step 0 or a history."""
        await self._compute.clear()
        self.next_step, self._up.received, self.loading = 0, 0, None
        self._answers.clear()
        self._down.retained.load(0, [])

    def end(self, keep_s: int) -> None:
        """The session is over: they are to be kept if nothing is under way; else a step that is computed ends. `release` must follow."""
        if keep_s and self._up.received <= self.next_step and self.is_at_rest(self.next_step):
            self.keep_s = keep_s
        else:
            self._is_over = True
            self._compute.abandon()

    async def release(self) -> None:
        """Keep what a fork may begin with, until `free` or until open sessions need the memory; or give it back. The session is over."""
        self._answers.clear()
        self.keep_s = self.keep_s if self.holds_tokens else 0  # one without tokens would only take the place of another
        if self.keep_s:
            try:
                await self._compute.keep()
            except SwarmError as error:  # the node is leaving, or they are of a part
                log.info("the sequences of an ended session are not kept: %s", error)
                self.keep_s = 0
        if self.keep_s:
            self._down.retained.settle()
        else:
            await self.free()

    async def free(self) -> None:
        """Give the sequences' memory back. The session is over."""
        self._is_over = True
        await self._compute.clear()
