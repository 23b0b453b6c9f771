"""Schedulers in virtual time, with forwards of given cost.

Sessions (`Chat`) send their steps along a route of simulated devices.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from node.device.host_queue import HostQueue
from node.device.pending import Pending
from node.device.schedule import Decision
from node.device.scheduler import Scheduler
from node.device.training_time import Priority
from node.device.work import HeldSequences, Request, Step, Task
from protocols.ids import PeerId, SessionId
from protocols.inference import StepSpec

Cost = Callable[[int, int], float]
"""(decodes, prompt tokens) -> milliseconds of a forward."""


class Queue:
    """A device's scheduler with one host, or with more (`add`); the test runs its decisions."""

    def __init__(self, budget_tokens: int, clock: Callable[[], float] | None = None, max_waiting: int = 1_024) -> None:
        self.scheduler = Scheduler(clock, max_waiting) if clock else Scheduler(max_waiting=max_waiting)
        self.hosts: list[HostQueue] = []
        self.host = self.add(budget_tokens)

    def add(self, budget_tokens: int) -> HostQueue:
        self.hosts.append(self.scheduler.add(None, budget_tokens)[0])  # type: ignore[arg-type]
        return self.hosts[-1]

    def __len__(self) -> int:
        return sum(len(host.waiting) for host in self.hosts)

    def submit(self, request: Request, host: HostQueue | None = None) -> Pending:
        return self.scheduler.submit(host or self.host, request)

    def poll(self) -> Decision:
        return self.scheduler.poll()

    def take(self) -> Decision:
        decision = self.scheduler.take()
        assert decision is not None
        return decision

    def finished(self, decision: Decision, ms: float) -> None:
        if decision.queue is not None:
            self.scheduler.finished(decision.queue, decision.chunks)
            self.scheduler.account(decision.queue, decision.chunks, ms)


def asked(decision: Decision) -> list[Request]:
    """The requests of a decision."""
    return [one.request for _, one in decision.changes] + [chunk.pending.request for chunk in decision.chunks]


@dataclass
class Chat:
    """A session that sends its prompt, then single tokens, each `think_s` after the answer to the last."""

    client: str
    prompt: int = 1
    max_tokens: int = 1 << 30
    think_s: float = 0.001
    """Seconds from the last hop's answer to the next step."""
    priority: int = 0
    begin_s: float = 0.0
    host: int = 0
    """Index among the device's hosts."""
    done_s: list[float] = field(default_factory=list)
    """When each step was answered: the prompt, then every token."""

    def gaps_s(self) -> list[float]:
        """Seconds between tokens, without the first twenty: costs are not measured yet then."""
        return [after - before for before, after in itertools.pairwise(self.done_s)][20:]


class Swarm:
    """Chats over a route of devices with one cost: (decodes, prompt tokens) -> milliseconds.

    more: costs of the second, third, … host of each device.
    """

    def __init__(
        self, num_hops: int, cost_ms: Cost, seed: int = 0, budget_tokens: int = 1_024, more: Sequence[Cost] = ()
    ) -> None:
        self.now_s = 0.0
        self.hops = [Queue(budget_tokens, clock=lambda: self.now_s) for _ in range(num_hops)]
        self._passes: dict[int, Callable[[], None]] = {}
        """By step: the function to call at its end."""
        for hop in self.hops:
            for _ in more:
                hop.add(budget_tokens)
        self.busy_s = [0.0] * num_hops
        self.served_s = [0.0] * (1 + len(more))
        """Of each host, over all devices."""
        self.forwards: list[list[tuple[int, int]]] = [[] for _ in range(num_hops)]
        """(decodes, tokens of prompts) of every forward, by hop."""
        self.task_ms: dict[Priority, float] = {}
        """Of each kind of training task; empty = nothing is trained."""
        self.trained: list[tuple[float, Priority]] = []
        """When each task ended."""
        self._costs_ms, self._dice = (cost_ms, *more), random.Random(seed)
        self._is_busy = [False] * num_hops
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def run(self, chats: list[Chat], until_s: float) -> None:
        for number, chat in enumerate(chats):
            rows = [
                HeldSequences(SessionId(number.to_bytes(16)), PeerId(chat.client), num_hops=len(self.hops)) for _ in self.hops
            ]
            self._at(chat.begin_s + self._dice.random() * 1e-3, lambda c=chat, r=rows: self._send(c, r, 0, c.prompt))  # type: ignore[misc]
        while self._events and self.now_s < until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._serial), act))

    def _send(self, chat: Chat, rows: list[HeldSequences], hop: int, tokens: int) -> None:
        step = Step(session=rows[hop], counts=(tokens,), values=torch.empty(tokens, 0), spec=StepSpec(priority=chat.priority))
        self._passes[id(self.hops[hop].submit(step, self.hops[hop].hosts[chat.host]))] = lambda: self._passed(
            chat, rows, hop, tokens
        )
        self._look(hop)

    def _passed(self, chat: Chat, rows: list[HeldSequences], hop: int, tokens: int) -> None:
        way_s = 0.0002 * (1 + self._dice.random())
        if hop + 1 < len(self.hops):
            self._at(self.now_s + way_s, lambda: self._send(chat, rows, hop + 1, tokens))
            return
        chat.done_s.append(self.now_s)
        if len(chat.done_s) <= chat.max_tokens:
            self._at(self.now_s + way_s + chat.think_s, lambda: self._send(chat, rows, 0, 1))

    def _look(self, hop: int) -> None:
        if self._is_busy[hop]:
            return
        decision = self.hops[hop].poll()
        if chunks := decision.chunks:
            rows = sum(chunk.size for chunk in chunks if chunk.pending.is_decode)
            tokens = sum(chunk.size for chunk in chunks) - rows
            host = next(index for index, queue in enumerate(self.hops[hop].hosts) if queue is decision.queue)
            ms = self._costs_ms[host](rows, tokens) * self._dice.uniform(0.95, 1.05)
            self.forwards[hop].append((rows, tokens))
            self.busy_s[hop] += ms / 1e3
            self.served_s[host] += ms / 1e3
            self._is_busy[hop] = True
            self._at(self.now_s + ms / 1e3, lambda: self._finish(hop, decision, ms))
        elif decision.task is not None:
            self._is_busy[hop] = True
            ms = self.task_ms[decision.task.priority]
            self._at(self.now_s + ms / 1e3, lambda: self._finish_task(hop, decision, ms))
        elif len(self.hops[hop]) or self.task_ms:
            self._at(self.now_s + 0.0005, lambda: self._look(hop))  # it waits for decodes that are due

    def train(self, hop: int, priority: Priority) -> None:
        """A task of this kind waits from now on, again and again."""
        self.hops[hop].scheduler.add_task(Task(function=lambda: None, priority=priority))
        self._look(hop)

    def _finish_task(self, hop: int, decision: Decision, ms: float) -> None:
        assert decision.task is not None
        self._is_busy[hop] = False
        self.trained.append((self.now_s, decision.task.priority))
        self.hops[hop].scheduler.finished_task(decision, ms)
        self.train(hop, decision.task.priority)

    def _finish(self, hop: int, decision: Decision, ms: float) -> None:
        self._is_busy[hop] = False
        self.hops[hop].finished(decision, ms)
        for chunk in decision.chunks:
            if chunk.is_last:
                self._passes.pop(id(chunk.pending))()
        self._look(hop)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]
