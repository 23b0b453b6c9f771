"""What a device is asked to do: one frozen type a kind.

A request never changes. How far it is belongs to the scheduler (`pending.py`), and its outcome is one future. Training adds kinds
here (forward, backward, update).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

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
    """Of its route."""
    engine: Engine | None = None
    """Of the blocks that it runs; None = of all that its host serves."""
    num_tokens: int = 0
    """Of all its sequences, after the last forward."""
    worked_in: int = 0
    """The period of `WorkCounter` in which it was counted last."""


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
    """On the device's clock: too late to begin, or to go on with the next prefill chunk."""
    is_whole: bool = False
    """It must not be cut: here a sequence that goes on costs more than one that begins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clear:
    """Give all sequences of the session back."""

    session: HeldSequences


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fork:
    """Give all sequences of the session back, and begin with copies of those of `source`, which runs the same blocks."""

    session: HeldSequences
    source: HeldSequences


Request: TypeAlias = Step | Clear | Fork
"""What a session asks for, and waits for in the queue."""
