"""Tasks of training that wait for a device, and their time."""

from __future__ import annotations

from collections import deque

from node.device.schedule import Decision
from node.device.training_time import Priority, TrainingTime
from node.device.work import Task
from protocols.errors import OverloadedError


class TrainingQueue:
    """Tasks by priority, each kind first come, first served. Only `Scheduler` calls it, under its lock."""

    def __init__(self, time: TrainingTime, max_waiting: int) -> None:
        self.time, self._max_waiting = time, max_waiting
        self._waiting: dict[Priority, deque[Task]] = {kind: deque() for kind in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, task: Task, now_s: float) -> None:
        """OverloadedError if too many wait."""
        if len(self) >= self._max_waiting:
            raise OverloadedError(f"{self._max_waiting} tasks of training wait here, the limit: try a replica")
        self.advance(now_s)
        self._waiting[task.priority].append(task)

    def remove(self, task: Task) -> None:
        """Do not run the task, if it has not begun."""
        if task in (waiting := self._waiting[task.priority]):
            waiting.remove(task)

    def first(self) -> Task | None:
        """The task that goes next."""
        return next((waiting[0] for waiting in self._waiting.values() if waiting), None)

    def advance(self, now_s: float) -> TrainingTime:
        """The time that is owed at `now_s`."""
        self.time = self.time.since(now_s, is_waiting=len(self) > 0)
        return self.time

    def finished(self, decision: Decision, ms: float, now_s: float) -> None:
        """The task of this decision took `ms`."""
        assert decision.task is not None
        self.time = self.time.with_task(decision.task.priority, ms, was_owed=decision.is_owed)
        self.advance(now_s)
