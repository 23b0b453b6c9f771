"""When the device runs training instead of waiting for serving. Pure.

Steps of sessions go first. A training task (a forward, a backward or an update of a micro-batch) cannot be interrupted, so it begins

- if no step waits, and it is expected to end before the next decode is due;
- or if it has had less than its share of the time: while tasks wait, the device owes them `train_share` of each second, and a task begins
  once as much is owed as it is expected to take. So a saturated device still trains, and a decode waits for one task at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

KEPT = 0.8
"""Weight of the earlier measurements in a task's expected time."""


class Priority(IntEnum):
    """Kinds of training tasks in their order: an update ends a version, a backward frees memory, a forward takes some."""

    UPDATE = 0
    BACKWARD = 1
    FORWARD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTime:
    """What the device owes training, and what a task of each kind takes."""

    share: float
    """Least share of the device's time for training while steps of sessions wait, in [0, 1]."""
    owed_ms: float = 0.0
    at_s: float = 0.0
    """When `owed_ms` was true."""
    expected_ms: Mapping[Priority, float] = field(default_factory=dict)
    """Mean of each kind's milliseconds, newer ones weigh more; a kind without an entry has not run yet, and counts as 0."""

    def since(self, now_s: float, *, is_waiting: bool) -> TrainingTime:
        """The same at `now_s`. is_waiting: tasks have waited since `at_s`; else nothing is owed.

        At most two of the longest tasks are owed: a long wait is not made up for by a series of tasks.
        """
        if not is_waiting:
            return replace(self, owed_ms=min(0.0, self.owed_ms), at_s=now_s)
        owed_ms = self.owed_ms + self.share * (now_s - self.at_s) * 1e3
        return replace(self, owed_ms=min(2 * max((1.0, *self.expected_ms.values())), owed_ms), at_s=now_s)

    def may_begin(self, kind: Priority, now_s: float, *, is_step_ready: bool, due_s: Sequence[float]) -> bool:
        """Whether a task begins at `now_s`, to which `since` has brought this. due_s: when sessions' next decodes are expected."""
        expected_ms = self.expected_ms.get(kind, 0.0)
        if self.is_owed(kind):
            return True
        return not is_step_ready and now_s + expected_ms / 1e3 <= min(due_s, default=float("inf"))

    def is_owed(self, kind: Priority) -> bool:
        """Whether a task of this kind begins even if steps wait."""
        return self.owed_ms > 0 and self.owed_ms >= self.expected_ms.get(kind, 0.0)

    def wait_s(self, kind: Priority) -> float:
        """Seconds until `is_owed`, if tasks wait; infinite without a share."""
        missing_ms = self.expected_ms.get(kind, 0.0) - self.owed_ms
        return max(0.0, missing_ms) / (self.share * 1e3) if self.share else float("inf")

    def with_task(self, kind: Priority, ms: float, *, was_owed: bool) -> TrainingTime:
        """After a task of `ms`, which counts against what is owed. was_owed: it began for that, so what it took too much counts, too."""
        before = self.expected_ms.get(kind)
        expected = {**self.expected_ms, kind: ms if before is None else KEPT * before + (1 - KEPT) * ms}
        left_ms = self.owed_ms - ms
        return replace(self, owed_ms=left_ms if was_owed else max(min(0.0, self.owed_ms), left_ms), expected_ms=expected)
