"""What a node lends a session: rows of K/V on its device, and turns in its batches. The face between a hop and the node behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protocols.inference import Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """How a step stands among others that wait."""

    priority: int = 0
    """Higher goes first."""

    expires_s: float = math.inf
    """On the monotonic clock: a step that still waits then is refused with DeadlineError, and its client asks another peer."""


ORDINARY = Urgency()


class SessionCompute(Protocol):
    """What the node lends a session: rows of K/V on its device, and a turn in its batches."""

    hidden_size: int
    dtype: torch.dtype

    async def step(
        self, ops: Sequence[Op], counts: Sequence[int], hidden: Tensor, positions: Tensor | None, urgency: Urgency = ORDINARY
    ) -> Tensor:
        """Apply `ops`, then run hidden [T, H] of all rows through the blocks: [T, H]. Typed errors; then the rows are lost."""
        ...

    def abandon(self) -> None:
        """The session is over: a `step` that is under way raises soon, and costs nothing more. `clear` must follow."""
        ...

    async def clear(self) -> None:
        """Give all rows back; the next step starts from nothing."""
        ...
