"""One host's queue: its waiting requests, costs and accounts."""

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
    """A host, as the device's thread calls it. A method settles a request that fails, and does not raise for it."""

    def change(self, pending: Pending) -> None:
        """Carry out a Clear, a Fork or a Keep, and settle it."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> None:
        """Run one forward of these; call `Scheduler.finished`, then settle every step that has run to its end."""
        ...

    def warm_up(self) -> bool:
        """Make later forwards faster (capture one graph), without a change of any sequence. False: nothing is left to do."""
        ...


@dataclass(frozen=True, slots=True)
class LastDecode:
    """When a session decoded last, and its mean time until the next decode."""

    done_s: float | None = None
    """When its last step ended, if that was a decode."""
    inter_arrival_s: float = 0.0
    """Mean inter-arrival time, from a decode's end to the next decode's arrival; newer times weigh more; 0 = not known."""

    @property
    def due_s(self) -> float | None:
        """When the next decode is expected; None = not known."""
        return None if self.done_s is None or not self.inter_arrival_s else self.done_s + self.inter_arrival_s


NEVER = LastDecode()


@dataclass(slots=True, eq=False, kw_only=True)
class HostQueue:
    """The state of one host; only `Scheduler` changes it, under its lock, and `schedule.py` reads it."""

    host: Runs
    budget_tokens: int
    """Limit of the new tokens of all sessions in one forward."""
    waiting: deque[Pending] = field(default_factory=deque)
    decoding: dict[HeldSequences, None] = field(default_factory=dict)
    """Sessions whose last step was a decode, less than ACTIVE_S ago."""
    last: dict[HeldSequences, LastDecode] = field(default_factory=dict)
    """The last step of every session that has sequences."""
    costs: Costs = field(default_factory=Costs)
    ledger: Ledger = field(default_factory=Ledger)
    credit_ms: float = forward_size.LEAST_CREDIT_MS
    """Milliseconds that prefill chunks may still take beside decodes: the time of decodes, less that of prefill chunks."""
    rests: dict[PeerId, float] = field(default_factory=dict)
    """By client: earliest time of its next step that copies sequences, because its last copies took long."""
    free_s: float = 0.0
    """When the host's last forward ended; before the first, when the host was added."""
    is_closed: bool = False
    """New requests are refused; those that wait are still run."""
    may_warm_up: bool = True
    """There may be something left to warm up."""
    is_slow_to_warm_up: bool = False
    """A warm-up took longer than `DeviceConfig.longest_warm_up_s`, so no other begins."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the queue is closed and all requests have run."""

    def active(self, now_s: float) -> list[HeldSequences]:
        """Sessions that have decoded within the last ACTIVE_S seconds."""
        oldest_s = now_s - forward_size.ACTIVE_S
        return [session for session in self.decoding if (self.last[session].done_s or 0.0) >= oldest_s]

    def num_decoding(self, now_s: float) -> int:
        return len(self.active(now_s))

    def due_s(self, now_s: float) -> list[float]:
        """When the next decodes of the active sessions are expected."""
        return [due for session in self.active(now_s) if (due := self.last[session].due_s) is not None]
