"""An engine turns steps of many sequences into forwards of one span.

- packed (`packed.py`): one flat token axis, attention sequence by sequence; the fastest.
- paged (`paged.py`): sequences side by side with the model's own masks; for spans that cannot be packed.
- serial (`serial.py`): one sequence a forward; for spans that cannot be batched.

`selftest.py` decides at load which engine serves a span, never a family's name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from node.engines.packed import PackedEngine
from node.engines.paged import PagedEngine
from node.engines.selftest import SelfTest, small_windows
from node.engines.sequence_store import Chunking, Mode
from node.engines.serial import RecomputeEngine, SerialEngine
from protocols.errors import ModelNotSupportedError
from swarm.models.span import SpanModule

log = logging.getLogger(__name__)


class TokenSequence(Protocol):
    """One sequence of tokens at this span. Opaque, but for its length; belongs to the engine that opened it."""

    @property
    def length(self) -> int: ...


class Engine(Protocol):
    """Computes the blocks of one span and keeps their state for each sequence. Not thread-safe: all calls come from one thread."""

    mode: Mode
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    can_crop: bool
    """False: a crop may only remove all of a sequence's tokens, because a block keeps a running state."""
    chunking: Chunking
    """Which steps may run as several prefill chunks: those for which that costs no more than one forward."""
    forwards: int
    """Forwards so far: with batching, fewer than sequences times steps."""

    @property
    def used_bytes(self) -> int:
        """Bytes that sequences hold now; 0 if all are closed."""
        ...

    limit_bytes: int
    """Bytes that sequences may hold; it may be set anew between steps."""

    def open(self) -> Any:
        """A new, empty `TokenSequence`; takes no memory yet."""
        ...

    def fork(self, sequence: Any) -> Any:
        """A `TokenSequence` with the same tokens. May raise CacheFullError (nothing changed)."""
        ...

    def crop(self, sequence: Any, count: int) -> None:
        """Drop a sequence's last `count` tokens, 0 <= count <= length. BadRequestError if `can_crop` is False and some would stay."""
        ...

    def close(self, sequence: Any) -> None:
        """Give a sequence's memory back; it is then empty, as if just opened. A second call changes nothing."""
        ...

    def growth_bytes(self, items: Sequence[tuple[Any, int]]) -> int:
        """Bytes that `step(items)` would newly take; it succeeds while they are at most `limit_bytes - used_bytes`."""
        ...

    def step(self, items: Sequence[tuple[Any, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Append `count` > 0 tokens to each (sequence, count); no sequence twice. All tensors lie on `device`.

        hidden [1, T, H]: the sequences' tokens one after the other. positions [T]; None: each token's place in its sequence, from 0.
        Returns [1, T, H], which an accelerator may still be computing. CacheFullError: nothing was changed.
        """
        ...

    def warm_up(self) -> bool:
        """Capture one more graph. Takes as long as several forwards, and changes no sequence. False: nothing is left to
        capture, or there is no memory for it now.
        """
        ...


CANDIDATES: tuple[tuple[str, Callable[[SpanModule, int], Engine]], ...] = (
    ("packed", PackedEngine),
    ("paged", PagedEngine),
    ("paged, token by token", lambda span, limit: PagedEngine(span, limit, unroll=True)),
    ("serial", SerialEngine),
    ("serial, token by token", lambda span, limit: SerialEngine(span, limit, unroll=True)),
    ("recomputing", RecomputeEngine),
)
"""(name, constructor) of each engine, the preferred one first."""


def choose_engine(span: SpanModule, limit_bytes: int) -> Engine:
    """The first engine of CANDIDATES that is exact on this span; the span belongs to it from then on. limit_bytes: of its sequences.

    Each candidate runs a self-test of about 30 tokens against the span's own run without a cache. ModelNotSupportedError if none passes,
    with the reason of each.
    """
    reasons = []
    with small_windows(span):
        test = SelfTest(span)
        for name, make in CANDIDATES:
            reason = test.fault(make)
            if reason is None:
                break
            reasons.append(f"{name}: {reason}")
            log.info("%s cannot be served %s: %s", span.config.model_type, name, reason)
        else:
            raise ModelNotSupportedError(f"blocks of {span.config.model_type!r} cannot be served exactly ({'; '.join(reasons)})")
    log.info("%s blocks are served by the %s engine", span.config.model_type, name)
    return make(span, limit_bytes)
