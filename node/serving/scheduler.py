"""Who goes into the next forward: a queue of steps that wait, and a pure policy that picks a batch from it.

Continuous batching: whatever is ready goes together, decodes and prompt chunks of any session, up to a budget of tokens.
Of each session only the oldest job is eligible: a step whose caller was cancelled may still wait when the session's rows are given
back, and a batch must never hold both.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from protocols.errors import OverloadedError, SwarmError
from protocols.ids import SessionId
from protocols.inference import Op
from swarm.inference.compute import ORDINARY, Urgency

if TYPE_CHECKING:
    from node.serving.engine import Row

MAX_WAITING = 1_024
"""Steps that wait at most; the next one is refused."""


@dataclass(slots=True, eq=False)
class HeldRows:
    """The rows of one session; only the runner's thread touches them."""

    id: SessionId
    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Job:
    """One step of one session, waiting for its turn on the device. `done` is called once, from the runner's thread."""

    session: HeldRows
    ops: Sequence[Op] = ()
    counts: Sequence[int] = ()
    hidden: Tensor | None = None
    """[T, H]; None: give all rows of the session back."""
    positions: Tensor | None = None
    urgency: Urgency = ORDINARY
    done: Callable[[Tensor | SwarmError], None] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)


def choose(sizes: Sequence[int], priorities: Sequence[int], budget: int) -> list[int]:
    """Which waiting steps run next, by index: higher priority first, then short steps (decodes), then the oldest.

    sizes: new tokens of each step, oldest first. At most `budget` tokens together, except that one step may exceed it alone.
    The oldest of the highest priority always goes, so that nothing waits forever.
    """
    top = max(priorities)
    first = next(index for index, priority in enumerate(priorities) if priority == top)
    order = sorted((index for index in range(len(sizes)) if index != first), key=lambda i: (-priorities[i], sizes[i] > 1, i))
    chosen, total = [first], sizes[first]
    for index in order:
        if total + sizes[index] <= budget:
            chosen.append(index)
            total += sizes[index]
    return sorted(chosen)


class Scheduler:
    """A queue between the event loop, which submits, and the runner's thread, which takes batches."""

    def __init__(self, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._waiting: deque[Job] = deque()
        self._ready = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a step; OverloadedError when too many wait or the node is leaving. Rows may always be given back until `close`."""
        with self._ready:
            is_full = len(self._waiting) >= MAX_WAITING and job.hidden is not None
            if self._is_closed or is_full:
                reason = "this node is leaving" if self._is_closed else f"{MAX_WAITING} steps wait here, the limit"
                raise OverloadedError(f"{reason}: try a replica")
            self._waiting.append(job)
            self._ready.notify()

    def take(self) -> list[Job] | None:
        """Wait for work and take the next batch; None once closed and empty."""
        with self._ready:
            while not self._waiting and not self._is_closed:
                self._ready.wait()
            if not self._waiting:
                return None
            jobs = _oldest_of_each_session(self._waiting)
            batch = [
                jobs[i] for i in choose([job.num_tokens for job in jobs], [job.urgency.priority for job in jobs], self._budget)
            ]
            chosen = set(map(id, batch))
            self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
            return batch

    def close(self) -> None:
        """Take nothing new; what waits is still run."""
        with self._ready:
            self._is_closed = True
            self._ready.notify_all()


def _oldest_of_each_session(waiting: Iterable[Job]) -> list[Job]:
    first: dict[int, Job] = {}
    for job in waiting:
        first.setdefault(id(job.session), job)
    return list(first.values())
