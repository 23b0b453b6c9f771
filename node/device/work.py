"""The requests to a device: one frozen type for each kind.

A request never changes. Its progress and its outcome are in `pending.py`. Training's work has no session: it is a `Task`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from node.device.training_time import Priority
from protocols.ids import PeerId, SessionId
from protocols.inference import PASS_ON, Op, StepSpec

if TYPE_CHECKING:
    from node.engines.engine import Engine, TokenSequence


@dataclass(slots=True, eq=False)
class HeldSequences:
    """The sequences of one session on a device; only the device's thread touches `sequences` and `num_tokens`."""

    id: SessionId
    client: PeerId
    sequences: list[TokenSequence] = field(default_factory=list)
    num_hops: int = 1
    """Hops of the session's route."""
    engine: Engine | None = None
    """Engine of the blocks that the session runs; None = the engine of all blocks of its host."""
    num_tokens: int = 0
    """Tokens of all its sequences, after the last forward."""
    is_kept: bool = False
    """The session has ended; its sequences wait for a fork (`kept.py`)."""
    worked_in: int = 0
    """The last period of `WorkCounter` in which the session was counted."""
    is_counted: bool = False
    """In the device's `Tally`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """Operations on sequences, then `counts[i]` new tokens of sequence i through the session's blocks. Outcome: what `spec` asks for."""

    session: HeldSequences
    ops: Sequence[Op] = ()
    counts: Sequence[int]
    values: Tensor
    """[T, …] as `spec` says, T = sum(counts)."""
    positions: Tensor | None = None
    """[T]; None = counted on from each sequence's length."""
    spec: StepSpec = PASS_ON
    expires_s: float = math.inf
    """Seconds on the device's clock, after which neither the step nor its next prefill chunk begins."""
    is_whole: bool = False
    """It runs in one forward, without prefill chunks: the engine continues a sequence at a higher cost than it begins one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clear:
    """Close all sequences of the session."""

    session: HeldSequences


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fork:
    """Close all sequences of the session, and begin with copies of those of `source`, which runs the same blocks."""

    session: HeldSequences
    source: HeldSequences
    tokens: int = 0
    """Above 0: only with so many first tokens of its only sequence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Keep:
    """The session has ended; its sequences stay for a `Fork` while memory is free, until a `Clear`."""

    session: HeldSequences


Request: TypeAlias = Step | Clear | Fork | Keep
"""A session's request, which waits in the queue of its host."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A function of training, which runs once and alone. Outcome: what it returns or raises."""

    function: Callable[[], Any]
    priority: Priority
    future: asyncio.Future[Any] | None = None
    """None: the caller reads the scheduler's decisions itself, as simulations do."""

    def settle(self, outcome: object, error: Exception | None) -> None:
        """Set the outcome, from any thread."""
        if self.future is not None:
            with contextlib.suppress(RuntimeError):  # its event loop is closed: no caller waits
                self.future.get_loop().call_soon_threadsafe(_settle, self.future, outcome, error)


def _settle(future: asyncio.Future[Any], outcome: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)
