"""An engine turns steps of many rows into forwards of one span. One face, and a choice among implementations by trying them.

- packed (`packed.py`): one flat token axis, attention row by row; the fastest.
- paged (`paged.py`): rows side by side with the model's own masks; for what cannot be packed.
- serial (`serial.py`): one row a forward; for what cannot be batched.

Which one serves is decided by `selftest.py` at load, never by a family's name.
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
    """One sequence of real tokens at this span. Opaque, but for its length; belongs to the engine that opened it."""

    @property
    def length(self) -> int: ...


class Engine(Protocol):
    """All calls come from one thread."""

    mode: Mode
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    can_crop: bool
    """False: a row can be cropped to nothing only, since some block keeps a running state."""
    chunking: Chunking
    """Where a row's step may be run in parts that cost no more than the whole."""
    forwards: int
    """Forwards run so far: with batching, fewer than rows times steps."""

    @property
    def used_bytes(self) -> int:
        """Memory that rows hold now; 0 when all are closed."""
        ...

    limit_bytes: int
    """Memory that rows may hold; it may be set anew between steps."""

    def open(self) -> Any:
        """A new, empty `TokenSequence`; takes no memory yet."""
        ...

    def fork(self, row: Any) -> Any:
        """A `TokenSequence` with the same tokens. May raise CacheFullError (nothing changed)."""
        ...

    def crop(self, row: Any, count: int) -> None:
        """Drop a row's last `count` tokens, 0 <= count <= length. BadRequestError where `can_crop` is False and some stay."""
        ...

    def close(self, row: Any) -> None:
        """Give a row's memory back; it is empty then, as if just opened. A second call changes nothing."""
        ...

    def growth_bytes(self, items: Sequence[tuple[Any, int]]) -> int:
        """Bytes that `step(items)` would newly take; it succeeds while they are at most `limit_bytes - used_bytes`."""
        ...

    def step(self, items: Sequence[tuple[Any, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Append `count` > 0 tokens to each (row, count); no row twice. All tensors lie on `device`.

        hidden [1, T, H]: the rows' tokens one after the other; positions [T] where they are not each row's own 0, 1, 2, …
        Returns [1, T, H], which an accelerator may still be computing. Raises CacheFullError before anything changed.
        """
        ...

    def warm_up(self) -> bool:
        """Get faster while nobody waits: takes as long as some forwards, and changes no row. False: no more is to be won."""
        ...


CANDIDATES: tuple[tuple[str, Callable[[SpanModule, int], Engine]], ...] = (
    ("packed", PackedEngine),
    ("paged", PagedEngine),
    ("paged, token by token", lambda span, limit: PagedEngine(span, limit, unroll=True)),
    ("serial", SerialEngine),
    ("serial, token by token", lambda span, limit: SerialEngine(span, limit, unroll=True)),
    ("recomputing", RecomputeEngine),
)
"""In the order of preference."""


def choose_engine(span: SpanModule, limit_bytes: int) -> Engine:
    """The first engine that proves exact on this span. The span is the engine's from then on.

    Each candidate runs a self-test of some 30 tokens against the span's own stateless run. ModelNotSupportedError with the reason
    of every candidate where none passes.
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
