"""The queue of a device: all requests of its hosts.

Requests wait here until the device's thread takes them. `Scheduler` keeps the state, `schedule.py` decides. Event loops call `submit` and
`cancel`, the device's thread calls the rest.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from node.device import forward_size, schedule
from node.device.fairness import Accounts
from node.device.host_queue import NEVER, HostQueue, Runs
from node.device.pending import Chunk, Pending
from node.device.schedule import Decision
from node.device.training_queue import TrainingQueue
from node.device.training_time import TrainingTime
from node.device.work import HeldSequences, Request, Task
from protocols.errors import OverloadedError
from protocols.ids import PeerId
from swarm.clock import SYSTEM
from swarm.inference.hop.compute import Output

MAX_WAITING = 1_024
"""Limit of the waiting steps of one host; the next one is refused."""

INTER_ARRIVAL_SHARE = 0.3
"""Weight of the newest of a session's inter-arrival times."""

LEAST_WAIT_S = 1e-4
TRAIN_SHARE = 0.1
LINGER_S = 10.0
"""Seconds for which the thread of a device without hosts waits for the next task of training: a new thread costs torch a new pool."""


class Scheduler:
    """Takes requests, gives decisions. A request in a decision has left the queue; `finished` queues it again if more of it is left."""

    def __init__(
        self, clock: Callable[[], float] = SYSTEM.now_s, max_waiting: int = MAX_WAITING, train_share: float = TRAIN_SHARE
    ) -> None:
        """train_share: as `TrainingTime.share`."""
        self._clock, self._max_waiting = clock, max_waiting
        self._ready = threading.Condition()
        self._queues: list[HostQueue] = []
        self._served = Accounts()
        """Milliseconds that each host has had, by queue."""
        self._free_s = clock()
        """When the device's last forward ended."""
        self._is_taken_from = False
        self._training = TrainingQueue(TrainingTime(share=train_share, at_s=clock()), max_waiting)
        self._lingers_until_s = clock()

    def add(self, host: Runs, budget_tokens: int) -> tuple[HostQueue, bool]:
        """The queue of one more host, and whether a thread that takes must be started."""
        with self._ready:
            queue = HostQueue(host=host, budget_tokens=budget_tokens, free_s=self._clock())
            self._queues.append(queue)
            return queue, self._must_start()

    def add_task(self, task: Task) -> bool:
        """Queue a task of training; whether a thread that takes must be started. OverloadedError if too many wait."""
        with self._ready:
            self._training.add(task, self._clock())
            return self._must_start()

    def cancel_task(self, task: Task) -> None:
        """Do not run the task, if it has not begun."""
        with self._ready:
            self._training.remove(task)

    def finished_task(self, decision: Decision, ms: float) -> None:
        """After the task of this decision, which took `ms`."""
        with self._ready:
            self._training.finished(decision, ms, self._clock())
            self._lingers_until_s = self._clock() + LINGER_S

    def close(self, queue: HostQueue) -> None:
        """Refuse new requests of this host; those that wait are still run, then its `ended` is set."""
        with self._ready:
            queue.is_closed = True
            self._ready.notify()

    def submit(self, queue: HostQueue, request: Request, future: asyncio.Future[Output] | None = None) -> Pending:
        """Queue a request; OverloadedError if too many wait or the host is leaving. A `Clear` is taken at any time until `close`."""
        pending = Pending(request, future)
        with self._ready:
            is_full = len(queue.waiting) >= self._max_waiting and pending.is_step
            if queue.is_closed or is_full:
                reason = "this node is leaving" if queue.is_closed else f"{self._max_waiting} steps wait here, the limit"
                raise OverloadedError(f"{reason}: try a replica")
            pending.came_s = self._clock()
            if pending.is_decode:
                _note_arrival(queue, request.session, pending.came_s)
            queue.waiting.append(pending)
            self._ready.notify()
        return pending

    def cancel(self, queue: HostQueue, pending: Pending) -> None:
        """Do not run the rest of the request. A `Clear` of its session must follow."""
        with self._ready:
            pending.is_cancelled = True
            if pending in queue.waiting:
                queue.waiting.remove(pending)
                self._ready.notify()

    def take(self, idle_s: Callable[[], float | None] = lambda: None) -> Decision | None:
        """Wait for work and take what runs next. None once every host is closed, and nothing is left of it or of training.

        idle_s: seconds since the device's last forward after which an empty decision is given if no step waits; None = never.
        """
        with self._ready:
            while True:
                self._end_closed()
                if self._is_over():
                    self._is_taken_from = False
                    return None
                limit_s = None if any(queue.waiting for queue in self._queues) else idle_s()
                idle_until_s = math.inf if limit_s is None else self._free_s + limit_s
                decision = Decision() if (is_idle := idle_until_s <= self._clock()) else self._choose()
                if is_idle or not decision.is_empty:
                    return decision
                end_s = math.inf if self._queues else self._lingers_until_s
                until_s = min(idle_until_s, decision.until_s, end_s)
                self._ready.wait(None if until_s == math.inf else max(LEAST_WAIT_S, until_s - self._clock()))

    def poll(self) -> Decision:
        """As `take`, without waiting: empty if nothing waits, or if it pays to wait for more."""
        with self._ready:
            return self._choose()

    def finished(self, queue: HostQueue, chunks: Sequence[Chunk]) -> None:
        """After a forward of these: queue the steps of which more is left. Call it before these are settled: a session may send at once."""
        with self._ready:
            self._free_s = queue.free_s = now_s = self._clock()
            for chunk in chunks:
                _advance(queue, chunk, now_s)
            _forget_idle(queue, now_s)

    def account(self, queue: HostQueue, chunks: Sequence[Chunk], ms: float) -> None:
        """Update costs and accounts with a forward's `ms`; call it after its steps are settled and before the next decision."""
        with self._ready:
            self._rest_after(queue, chunks, ms, queue.free_s)
            self._charge_host(queue, ms)
            _account(queue, chunks, ms)

    def charge(self, queue: HostQueue, pending: Pending, ms: float) -> None:
        """Charge a step's client, and no batch, for the `ms` of its operations on sequences before the forward."""
        with self._ready:
            session = pending.request.session
            self._charge_host(queue, ms)
            queue.ledger.charge(session.client, session, ms / pending.weight)
            self._rest(queue, session.client, ms, self._clock())

    def forget(self, queue: HostQueue, session: HeldSequences) -> None:
        """The session has no sequences any more: no decode of it is expected."""
        with self._ready:
            queue.decoding.pop(session, None)
            queue.last.pop(session, None)

    def stop_warming_up(self, queue: HostQueue) -> None:
        """Begin no warm-up of this host any more."""
        with self._ready:
            queue.is_slow_to_warm_up = True

    def warm_up_again(self, queue: HostQueue) -> None:
        """This host has something to warm up: more graphs, another engine, or a changed module."""
        with self._ready:
            queue.may_warm_up = True
            self._ready.notify()

    def begin_warm_up(self) -> HostQueue | None:
        """The host to warm up now; it is not given again until `warm_up_again`. None: no host has anything to warm up."""
        with self._ready:
            if (queue := self.next_to_warm_up()) is not None:
                queue.may_warm_up = False
            return queue

    def next_to_warm_up(self) -> HostQueue | None:
        """The first host that has something to warm up; None: no host has."""
        with self._ready:
            return next((queue for queue in self._queues if queue.may_warm_up and not queue.is_slow_to_warm_up), None)

    def _choose(self) -> Decision:
        now_s = self._clock()
        decision = schedule.choose(now_s, self._queues, self._served)
        if (task := self._training.first()) is not None:
            decision = schedule.with_training(decision, now_s, self._queues, self._training.advance(now_s), task)
            if decision.task is not None:
                self._training.remove(decision.task)
        taken = {id(pending) for _, pending in decision.changes} | {id(chunk.pending) for chunk in decision.chunks}
        for queue in {queue for queue, _ in decision.changes} | ({decision.queue} if decision.queue else set()):
            queue.waiting = deque(pending for pending in queue.waiting if id(pending) not in taken)
        return decision

    def _must_start(self) -> bool:
        must_start, self._is_taken_from = not self._is_taken_from, True
        self._ready.notify()
        return must_start

    def _is_over(self) -> bool:
        return not self._queues and not self._training and self._clock() >= self._lingers_until_s

    def _end_closed(self) -> None:
        for queue in [queue for queue in self._queues if queue.is_closed and not queue.waiting]:
            self._queues.remove(queue)
            self._served.spent.pop(queue, None)
            queue.ended.set()

    def _charge_host(self, queue: HostQueue, ms: float) -> None:
        """Charge a host. One whose sessions wait for their clients keeps its claim to time; one that was idle for ACTIVE_S does not."""
        if len(self._queues) > 1:
            now_s = self._clock()
            self._served.advance([one for one in self._queues if one is queue or one.waiting or one.active(now_s)])
            self._served.charge(queue, ms)

    def _rest_after(self, queue: HostQueue, chunks: Sequence[Chunk], ms: float, now_s: float) -> None:
        """Engines that share pages copy them in the forward that writes: the time above that of its tokens counts as copying."""
        copying = [chunk.step.session.client for chunk in chunks if chunk.pending.copies]
        if copying:
            costs, num_decodes = queue.costs, sum(chunk.size for chunk in chunks if chunk.pending.is_decode)
            num_others = sum(chunk.size for chunk in chunks) - num_decodes
            expected_ms = (costs.decode_ms(num_decodes) if num_decodes else 0.0) + num_others * (costs.token_ms or 0.0)
            for client, number in Counter(copying).items():
                self._rest(queue, client, (ms - expected_ms) * number / len(copying), now_s)

    def _rest(self, queue: HostQueue, client: PeerId, ms: float, now_s: float) -> None:
        """A client's copies took `ms`: its next copies wait, if these were long and other clients decode."""
        queue.rests = {other: until_s for other, until_s in queue.rests.items() if until_s > now_s}
        rest_ms = forward_size.rest_ms(queue.costs, ms, schedule.num_others(client, self._queues, now_s))
        if rest_ms > 0:
            queue.rests[client] = queue.rests.get(client, now_s) + rest_ms / 1e3


def _note_arrival(queue: HostQueue, session: HeldSequences, came_s: float) -> None:
    """Note a session's inter-arrival time as its next decode arrives."""
    last = queue.last.get(session, NEVER)
    if last.done_s is not None:
        newest_s, mean_s = came_s - last.done_s, last.inter_arrival_s
        inter_arrival_s = mean_s + INTER_ARRIVAL_SHARE * (newest_s - mean_s) if mean_s else newest_s
        queue.last[session] = replace(last, inter_arrival_s=inter_arrival_s)


def _advance(queue: HostQueue, chunk: Chunk, now_s: float) -> None:
    """Note that a step has run these tokens; queue it again if more of it is left."""
    pending, session = chunk.pending, chunk.step.session
    pending.at += chunk.size
    queue.last[session] = replace(queue.last.get(session, NEVER), done_s=now_s if pending.is_decode else None)
    if pending.is_decode:
        queue.decoding[session] = None
    else:
        queue.decoding.pop(session, None)
    if pending.num_left and not pending.is_cancelled:
        queue.waiting.appendleft(pending)


def _forget_idle(queue: HostQueue, now_s: float) -> None:
    """Drop sessions that have not decoded for ACTIVE_S: their next decodes are not expected."""
    for session in [session for session in queue.decoding if (queue.last[session].done_s or 0.0) < now_s - forward_size.ACTIVE_S]:
        del queue.decoding[session]


def _account(queue: HostQueue, chunks: Sequence[Chunk], ms: float) -> None:
    """Update accounts, costs and credit of a host after a forward."""
    costs = queue.costs
    decodes = [chunk for chunk in chunks if chunk.pending.is_decode]
    prompts = [chunk for chunk in chunks if not chunk.pending.is_decode]
    num_decodes, num_tokens = sum(chunk.size for chunk in decodes), sum(chunk.size for chunk in prompts)
    row_ms, token_ms = costs.decode_ms(1) or 1.0, costs.token_ms or 1.0
    unit = ms / ((num_decodes * row_ms + num_tokens * token_ms) or 1.0)
    for kind, one_ms in ((decodes, row_ms), (prompts, token_ms)):
        queue.ledger.advance([(chunk.step.session.client, chunk.step.session) for chunk in kind])
        for chunk in kind:
            queue.ledger.charge(chunk.step.session.client, chunk.step.session, unit * chunk.size * one_ms / chunk.pending.weight)
    queue.costs = costs = costs.with_forward(num_decodes, num_tokens, ms)
    decodes_ms = min(ms, costs.decode_ms(num_decodes)) if num_decodes else 0.0
    spent_ms = ms - decodes_ms if num_tokens else 0.0
    limit_ms = max(forward_size.LEAST_CREDIT_MS, costs.decode_ms(len(queue.decoding) + 1))
    queue.credit_ms = min(limit_ms, max(0.0, queue.credit_ms - spent_ms / forward_size.CHUNK_SHARE) + decodes_ms)
