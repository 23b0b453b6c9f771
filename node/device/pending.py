"""A request in the queue of a device, and its progress."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from torch import Tensor

from node.device import fairness, forward_size
from node.device.work import Request, Step
from protocols.errors import SwarmError
from protocols.inference import Crop
from swarm.inference.hop.compute import Output


@dataclass(slots=True, eq=False)
class Pending:
    """A request and its progress. `future` gets the outcome, once, in the event loop that made it."""

    request: Request
    future: asyncio.Future[Output] | None = None
    """None: the caller reads the scheduler's decisions itself, as simulations do."""
    came_s: float = 0.0
    at: int = 0
    """Tokens that earlier forwards have run."""
    is_entered: bool = False
    """Its operations on sequences were run, and its sequences are open."""
    is_cancelled: bool = False
    """Its caller does not wait any more: the rest is not run."""
    outputs: list[Output] = field(default_factory=list, repr=False)
    compute_ms: float = 0.0
    """Of the forwards in which it has run so far."""

    num_tokens: int = field(init=False, default=0)
    is_decode: bool = field(init=False, default=False)
    copies: bool = field(init=False, default=False)
    """Whether its operations may copy sequences."""
    weight: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        if isinstance(step := self.request, Step):
            self.num_tokens = sum(step.counts)
            self.is_decode = forward_size.is_decode(step.counts, self.num_tokens)
            self.copies = any(not isinstance(op, Crop) for op in step.ops)
            self.weight = fairness.weight_of(min(0, step.spec.priority))

    @property
    def is_step(self) -> bool:
        return isinstance(self.request, Step)

    @property
    def step(self) -> Step:
        assert isinstance(self.request, Step)
        return self.request

    @property
    def num_left(self) -> int:
        return self.num_tokens - self.at

    def settle(self, outcome: Output | SwarmError) -> None:
        """Set the outcome, from any thread; only the first call counts."""
        if self.future is not None:
            with contextlib.suppress(RuntimeError):  # its event loop is closed: no caller waits
                self.future.get_loop().call_soon_threadsafe(_settle, self.future, outcome)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens [at, at + size) of a step, which run in one forward: a decode, a whole prompt or a prefill chunk."""

    pending: Pending
    at: int
    size: int

    @property
    def step(self) -> Step:
        return self.pending.step

    @property
    def is_last(self) -> bool:
        return self.at + self.size == self.pending.num_tokens

    def counts(self) -> list[int]:
        """Its tokens of each sequence."""
        if self.size == self.pending.num_tokens:
            return list(self.step.counts)
        counts, begin = [], 0
        for count in self.step.counts:
            counts.append(max(0, min(begin + count, self.at + self.size) - max(begin, self.at)))
            begin += count
        return counts

    def values(self) -> Tensor:
        """[size, …] as the step's spec says."""
        return self.step.values[self.at : self.at + self.size]


def _settle(future: asyncio.Future[Output], outcome: Output | SwarmError) -> None:
    if future.done():
        return
    if isinstance(outcome, SwarmError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
