"""What a session needs of a node's engine.

Sequences of K/V on its device, and time in its batches: the interface between a hop and the node behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protocols.inference import PASS_ON, Op, StepSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What came of a step, on the CPU: values [T', …], their token ids [T', k] where the largest logits were asked for, and totals [T'] or
    [T', 2] as `StepSpec.temperature` says."""

    values: Tensor
    ids: Tensor | None = None
    totals: Tensor | None = None
    queue_ms: float = 0.0
    """The step waited for the device so long, between its prefill chunks, too."""
    compute_ms: float = 0.0
    """Of the forwards in which it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndsShape:
    """Sizes of embedding and head that a step must fit."""

    vocab_size: int
    embed_width: int
    """Width of a caller's embeddings; not always the hidden size (opt-350m projects)."""

    can_pool: bool = False
    """Its final hidden states are known, and of the hidden size."""


class SessionCompute(Protocol):
    """A session's part of the node: its sequences' K/V on the device, and steps in its batches."""

    hidden_size: int
    dtype: torch.dtype
    ends: EndsShape | None
    """None: only blocks are hosted here."""

    async def step(
        self,
        ops: Sequence[Op],
        counts: Sequence[int],
        values: Tensor,
        positions: Tensor | None,
        spec: StepSpec = PASS_ON,
        expires_s: float = math.inf,
    ) -> Output:
        """Apply `ops`, then run the tokens of all sequences, [T, …] as `spec` says, through the blocks. After a typed error they are lost.

        expires_s: on the monotonic clock; a step that still waits then is refused with DeadlineError, and its client asks another peer.
        """
        ...

    async def fork(self, source: SessionCompute, tokens: int = 0) -> None:
        """Begin with copies of another session's sequences, which runs the same blocks here; also while it computes.

        tokens: above 0: only with so many first tokens of its only sequence. After a typed error there are none.
        """
        ...

    async def keep(self) -> None:
        """The session has ended: its sequences stay for forks while no open session needs their memory, until `clear`."""
        ...

    @property
    def holds_tokens(self) -> bool:
        """False also if the sequences were kept, and have been freed for other sessions."""
        ...

    def abandon(self) -> None:
        """The session is over: a `step` that is under way raises soon, and costs nothing more. `clear` must follow."""
        ...

    async def clear(self) -> None:
        """Free all sequences; the next step starts from nothing."""
        ...
