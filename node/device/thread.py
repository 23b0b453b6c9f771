"""A device: one computing thread and one memory budget for all hosts.

A node makes one `Device` and gives it to each host; the thread runs while a host is attached or training has work. It takes a decision of
`schedule.py`, and the host carries it out; what training computes are functions. The outcome of both is a future of the caller's event
loop. The thread never waits for the network, and event loops compute nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from node.device.host_queue import HostQueue, Runs
from node.device.memory import Memory
from node.device.pending import Pending
from node.device.schedule import Decision
from node.device.scheduler import TRAIN_SHARE, Scheduler
from node.device.tally import Tally
from node.device.training_time import Priority
from node.device.work import Request, Task
from protocols.errors import InternalError
from swarm.clock import SYSTEM, Clock

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """When a device warms up its hosts, and how much of its time training gets."""

    warm_up_after_s: float = 0.1
    """Seconds without work after which a host warms up (captures graphs) if no session holds KV cache."""
    warm_up_beside_s: float = 1.0
    """The same if a session does: its next token is expected soon."""
    longest_warm_up_s: float = 1.0
    """Limit of one warm-up in seconds: a host that exceeds it warms up no more, since a new session may have to wait for it."""
    train_share: float = TRAIN_SHARE
    """Least share of the device's time for training while steps of sessions wait, in [0, 1]."""


class Device:
    """Runs the work of every host that is attached."""

    def __init__(self, memory: Memory | None = None, config: DeviceConfig | None = None, clock: Clock = SYSTEM) -> None:
        """memory: None = a budget of what the hosts measure as free."""
        self.memory, self.clock = memory or Memory(), clock
        self._config = config or DeviceConfig()
        self.tally = Tally()
        self.scheduler = Scheduler(clock.now_s, train_share=self._config.train_share)

    def attach(self, host: Runs, budget_tokens: int) -> HostQueue:
        """Run the host's requests from now on."""
        queue, must_start = self.scheduler.add(host, budget_tokens)
        if must_start:
            self._start()
        return queue

    async def detach(self, queue: HostQueue) -> None:
        """Refuse new requests, and return once those that wait have run. A second call changes nothing."""
        self.scheduler.close(queue)
        await asyncio.to_thread(queue.ended.wait)

    def submit(self, queue: HostQueue, request: Request) -> Pending:
        """Queue a request of the running event loop, which awaits its `future`. OverloadedError if too many wait or the host leaves."""
        return self.scheduler.submit(queue, request, asyncio.get_running_loop().create_future())

    async def run(self, function: Callable[[], T], priority: Priority) -> T:
        """What `function` returns or raises in the device's thread, where no host's forward runs at the same time.

        Steps of sessions go first, as `training_time.py` says; no host needs to be attached. If the caller is cancelled before the
        function begins, it never runs; later, it runs to its end and its outcome is dropped. OverloadedError if too many wait.
        """
        task = Task(function=function, priority=priority, future=asyncio.get_running_loop().create_future())
        if self.scheduler.add_task(task):
            self._start()
        assert task.future is not None
        try:
            outcome: T = await task.future
        except asyncio.CancelledError:
            self.scheduler.cancel_task(task)
            raise
        return outcome

    def _start(self) -> None:
        threading.Thread(target=self._loop, name="device", daemon=True).start()

    def _loop(self) -> None:
        while (decision := self.scheduler.take(self._idle_s)) is not None:
            if decision.is_empty:
                self._warm_up()
            else:
                self._run(decision)
            del decision  # else it would keep what a task made until the next one

    def _idle_s(self) -> float | None:
        """Seconds without work after which a host warms up; None = no host has anything to warm up."""
        if self.scheduler.next_to_warm_up() is None:
            return None
        return self._config.warm_up_beside_s if self.memory.used_bytes else self._config.warm_up_after_s

    def _warm_up(self) -> None:
        queue = self.scheduler.begin_warm_up()
        if queue is None:
            return
        started = time.perf_counter()
        try:
            has_more = queue.host.warm_up()
        except Exception:  # no session asked for it
            log.exception("the engine could not warm up")
            has_more = False
        took_s = time.perf_counter() - started
        if took_s >= self._config.longest_warm_up_s:
            self.scheduler.stop_warming_up(queue)
            log.info("a warm-up took %.1f s, limit %.1f s: this host warms up no more", took_s, self._config.longest_warm_up_s)
        elif has_more:
            self.scheduler.warm_up_again(queue)

    def _run(self, decision: Decision) -> None:
        """Carry out a decision. If a host raises, its requests fail, and this thread continues."""
        for queue, pending in decision.changes:
            try:
                queue.host.change(pending)
            except Exception as error:
                self._fail(queue, pending, error)
        if decision.queue is not None:
            try:
                decision.queue.host.forward(decision.chunks)
            except Exception as error:
                for chunk in decision.chunks:
                    self._fail(decision.queue, chunk.pending, error)
        if decision.task is not None:
            self._run_task(decision, decision.task)

    def _run_task(self, decision: Decision, task: Task) -> None:
        started = time.perf_counter()
        outcome, error = None, None
        try:
            outcome = task.function()
        except Exception as raised:  # the caller gets it
            error = raised
        self.scheduler.finished_task(decision, (time.perf_counter() - started) * 1e3)
        task.settle(outcome, error)

    def _fail(self, queue: HostQueue, pending: Pending, error: Exception) -> None:
        """Settle the request with an InternalError; the rest of it is not run, even if the host has queued it again."""
        log.error("work failed on the device", exc_info=error)
        self.scheduler.cancel(queue, pending)
        pending.settle(InternalError(f"the work failed here: {type(error).__name__}; the peer's log says more"))
