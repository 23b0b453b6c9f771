"""A backend in this process: engines over consecutive spans, called directly.

What the client sends is written down.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from node.engines.engine import choose_engine
from protocols.ids import ModelId, Span
from protocols.inference import PASS_ON, WANT_ALL, Op
from swarm.client.backend import StepRequest
from swarm.client.model import build
from swarm.inference import rows as row_operations
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import load_ends, load_span

LIMIT_BYTES = 64 << 20

LESSONS = 2
"""Forwards that engines capture at warm-up: of one and of two tokens, as decodes have them. A node's engine captures more."""


@dataclass
class Call:
    """One step as it reached the backend."""

    ops: tuple[Op, ...]
    counts: tuple[int, ...]
    want: int
    positions: list[int] | None


@dataclass
class LocalBackend:
    """Spans `cuts[0]:cuts[1]`, `cuts[1]:cuts[2]`, … of a checkpoint."""

    checkpoint: Checkpoint
    engines: list[Any]
    spans: list[Span]
    dtype: torch.dtype = torch.float32
    version: int | None = None
    calls: list[Call] = field(default_factory=list)
    num_opened: int = 0
    num_closed: int = 0
    fail_next: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_open: threading.Event = field(default_factory=threading.Event)
    """While it is not set, steps wait."""
    is_asked: threading.Event = field(default_factory=threading.Event)
    """Set by every step that comes."""

    def __post_init__(self) -> None:
        self.is_open.set()

    @property
    def model(self) -> ModelId:
        return ModelId(self.checkpoint.name, "0" * 64)

    @property
    def used_bytes(self) -> int:
        return sum(engine.used_bytes for engine in self.engines)

    def open(self, blocks: Span | None = None) -> LocalSession:
        assert blocks is None, "parts are for real nodes"
        self.num_opened += 1
        return LocalSession(self)

    def differentiate(self, hidden: Tensor, blocks: Span | None = None) -> tuple[Tensor, LocalPass]:
        given, modules = hidden.clone().requires_grad_(), self.modules
        with torch.enable_grad():
            output = given
            for module in modules:
                output = module(output)
        return output.detach(), LocalPass(given, output)

    @cached_property
    def modules(self) -> list[Any]:
        """Modules of the spans that no engine uses."""
        return [load_span(self.checkpoint, span, dtype=self.dtype) for span in self.spans]

    def close(self) -> None:
        pass


@dataclass
class LocalPass:
    """A pass in this process."""

    given: Tensor
    output: Tensor

    def backward(self, gradient: Tensor) -> Tensor:
        return torch.autograd.grad(self.output, self.given, gradient, retain_graph=True)[0]

    def close(self) -> None:
        pass


class LocalSession:
    """Sequences at every engine, with the row operations of the hops."""

    version = None

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._rows: list[list[Any]] = [[] for _ in backend.engines]
        self._is_closed = False

    def step(self, request: StepRequest) -> Tensor:
        backend, counts, positions = self._backend, request.counts, request.positions
        ops, hidden, want = request.ops, request.tokens, request.spec.want
        assert request.spec.wanting(WANT_ALL) == PASS_ON
        assert not self._is_closed
        backend.is_asked.set()
        backend.is_open.wait()
        assert hidden.shape[:2] == (1, sum(counts)) and hidden.dtype == backend.dtype
        with backend.lock:  # all calls of an engine come one after the other
            assert not self._is_closed  # a step that waited may be the last to hear of it
            backend.calls.append(Call(ops, counts, want, None if positions is None else positions.tolist()))
            if backend.fail_next is not None:
                error, backend.fail_next = backend.fail_next, None
                raise error
            for index, engine in enumerate(backend.engines):
                rows = row_operations.enter(engine, row_operations.apply(engine, self._rows[index], ops), len(counts))
                self._rows[index] = rows
                items = [(row, count) for row, count in zip(rows, counts, strict=True) if count]
                hidden = engine.step(items, hidden, positions)
        if want == WANT_ALL:
            return hidden
        pieces = hidden[0].split(list(counts))
        return torch.cat([piece[max(0, len(piece) - want) :] for piece in pieces])[None]

    async def step_async(self, request: StepRequest) -> Tensor:
        return await asyncio.to_thread(self.step, request)

    def fork(self) -> LocalSession:
        """The engines' own forks: what came before is not computed again."""
        twin = self._backend.open()
        with self._backend.lock:
            twin._rows = [
                [engine.fork(row) for row in rows] for engine, rows in zip(self._backend.engines, self._rows, strict=True)
            ]
        return twin

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._backend.num_closed += 1
        with self._backend.lock:
            for engine, rows in zip(self._backend.engines, self._rows, strict=True):
                for row in rows:
                    engine.close(row)


def local_model(path: Path, *cuts: int, dtype: torch.dtype = torch.float32) -> tuple[Any, LocalBackend]:
    """A model over the spans between `cuts` (the first is 0, the last the number of blocks), and its backend."""
    checkpoint = open_checkpoint(path)
    edges = (0, *cuts, checkpoint.num_blocks)
    spans = [Span(start, stop) for start, stop in pairwise(edges)]
    engines = [choose_engine(load_span(checkpoint, span, dtype=dtype), LIMIT_BYTES) for span in spans]
    for engine in engines:
        for _ in range(LESSONS):
            engine.warm_up()
    backend = LocalBackend(checkpoint, engines, spans, dtype)
    return build(load_ends(checkpoint, dtype=dtype), checkpoint, backend), backend
