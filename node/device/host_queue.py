"""One host's requests that wait, with its costs and accounts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.device import forward_size
from node.device.costs import Costs
from node.device.fairness import Ledger
from node.device.pending import Chunk, Pending
from node.device.work import HeldSequences
from protocols.ids import PeerId


class Runs(Protocol):
    """What a host does with its work. All calls come from the device's thread; none raises for a fault of one request."""

    def change(self, pending: Pending) -> None:
        """Carry out a Clear or a Fork, and settle it."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> None:
        """One forward of these; tells the scheduler (`finished`), and settles every step that ends."""
        ...

    def warm_up(self) -> bool:
        """Make later forwards faster (capture one graph), without a change of any sequence; False: nothing is left to do."""
        ...


@dataclass(frozen=True, slots=True)
class LastDecode:
    """When a session decoded last, and how long its client takes until the next decode."""

    done_s: float | None = None
    """When its last step was done, if that was a decode."""
    inter_arrival_s: float = 0.0
    """Mean time from a decode's end to the arrival of the next, newer ones counting more; 0 = not known."""

    @property
    def due_s(self) -> float | None:
        """When the next decode should arrive."""
        return None if self.done_s is None or not self.inter_arrival_s else self.done_s + self.inter_arrival_s


NEVER = LastDecode()


@dataclass(slots=True, eq=False, kw_only=True)
class HostQueue:
    """Changed by `Scheduler` only, under its lock; `schedule.py` reads it."""

    host: Runs
    budget_tokens: int = 1_024
    """New tokens of all sessions, at most, in one forward."""
    waiting: deque[Pending] = field(default_factory=deque)
    decoding: dict[HeldSequences, None] = field(default_factory=dict)
    """Sessions whose last step was a decode, a moment ago."""
    last: dict[HeldSequences, LastDecode] = field(default_factory=dict)
    """Of every session that has sequences."""
    costs: Costs = field(default_factory=Costs)
    ledger: Ledger = field(default_factory=Ledger)
    credit_ms: float = forward_size.LEAST_CREDIT_MS
    """What decodes have taken and prefill chunks have not."""
    rests: dict[PeerId, float] = field(default_factory=dict)
    """By client: no copying step of it runs before this time, because its last copies were long."""
    free_s: float = 0.0
    """When its last forward ended; before the first one, when it came."""
    is_closed: bool = False
    """Nothing new is taken; what waits is still run."""
    may_warm_up: bool = True
    """A warm-up may win something."""
    is_slow_to_warm_up: bool = False
    """A warm-up took so long that none begins any more."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once it is closed and everything has run."""

    def active(self, now_s: float) -> list[HeldSequences]:
        """Sessions that have decoded within ACTIVE_S."""
        oldest_s = now_s - forward_size.ACTIVE_S
        return [session for session in self.decoding if (self.last[session].done_s or 0.0) >= oldest_s]

    def num_decoding(self, now_s: float) -> int:
        return len(self.active(now_s))

    def due_s(self, now_s: float) -> list[float]:
        """When the next decodes of these sessions should arrive."""
        return [due for session in self.active(now_s) if (due := self.last[session].due_s) is not None]
