"""A request that waits for its device, and how far it is."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from torch import Tensor

from node.device import fairness, forward_size
from node.device.work import Request, Step
from protocols.errors import SwarmError
from protocols.inference import Crop
from swarm.inference.compute import Output


@dataclass(slots=True, eq=False)
class Pending:
    """The scheduler's side of a request. `future` gets its outcome, once, in the event loop that made it."""

    request: Request
    future: asyncio.Future[Output] | None = None
    """None: the caller watches the scheduler itself, as simulations do."""
    came_s: float = 0.0
    at: int = 0
    """Tokens that were run in earlier forwards."""
    is_entered: bool = False
    """Its operations were done, and its sequences are there."""
    is_cancelled: bool = False
    """Its caller does not wait any more."""
    outputs: list[Output] = field(default_factory=list, repr=False)

    num_tokens: int = field(init=False, default=0)
    is_decode: bool = field(init=False, default=False)
    copies: bool = field(init=False, default=False)
    """May its operations copy sequences?"""
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
        """Tell the caller, from any thread; the first outcome counts."""
        if self.future is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: the caller has gone, and the device goes on
                self.future.get_loop().call_soon_threadsafe(_settle, self.future, outcome)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens [at, at + size) of a step: what runs of it in one forward. Mostly the whole step."""

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
