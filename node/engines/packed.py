"""Packed engine: all sequences' tokens on one flat axis.

It is the fastest path, with no padding and no gather. The span runs on [1, T, H] as if it were one sequence, since everything in a block
except attention works token by token. The attention function registered here (`packed_attention.py`) splits the axis into sequences,
appends the keys and values of each to its own buffer and attends within it. It has no mask function, so transformers builds no masks;
windows and attention chunking come from the config's layer types.

If a model did not call the registered function once for each block, the result would be wrong: every forward counts the calls.
Forwards of few tokens replay captured graphs (`graphs/engine_graphs.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import get_layer_types_and_kwargs

from node.engines import selftest
from node.engines.graphs.capture import Attending
from node.engines.graphs.engine_graphs import EngineGraphs, Example
from node.engines.packed_attention import MeasuringStep, PackedStep, attention, running
from node.engines.sequence_store import BlockShape, Chunking, Mode, PackedSequence, SequenceStore
from node.engines.step_limits import StepLimits
from protocols.errors import CacheFullError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

log = logging.getLogger(__name__)

ATTENTION = "murmuration_packed"
"""Name of the attention function in transformers' registry."""

_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def read_windows(config: Any) -> list[tuple[int, int]]:
    """(sliding window, attention chunking) of each block in tokens, 0 = none. ModelNotSupportedError if a block is of another kind."""
    kinds, options = get_layer_types_and_kwargs(config)
    if set(kinds) - _KINDS:
        raise ModelNotSupportedError(f"blocks of kind {', '.join(sorted(set(kinds) - _KINDS))} cannot be packed")
    windows = []
    for kind, option in zip(kinds, options, strict=True):
        size = option.get("sliding_window") or 0
        windows.append((size if kind == "sliding_attention" else 0, size if kind == "chunked_attention" else 0))
    return windows


PASTS = (2, 0, 5, 1, 3)
"""Earlier tokens of the sequences with which a captured graph is checked: at most five, of unequal lengths."""


def _halves(count: int) -> list[int]:
    """New tokens of those sequences, `count` in all: 16 -> [8, 4, 2, 1, 1]."""
    return [(count + 1) // 2, *_halves(count // 2)] if count else []


class PackedEngine:
    """Engine for blocks that attend through transformers' attention interface and keep only keys and values. Contract: `Engine`."""

    mode: Mode = "packed"
    chunking: Chunking = "always"

    def __init__(self, span: SpanModule, limit_bytes: int, *, limits: StepLimits | None = None) -> None:
        """The span calls our attention only while a step runs; else it is as before. ModelNotSupportedError if packing cannot work."""
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.can_crop = True
        self.forwards = 0
        self._span = span
        self._windows, self._limits = read_windows(span.config), limits or StepLimits()
        AttentionInterface.register(ATTENTION, attention)
        self._graphs = EngineGraphs(self._run, span, selftest.is_close)
        self._store = SequenceStore(self._measure(), limit_bytes)

    @property
    def used_bytes(self) -> int:
        return self._store.used_bytes

    @property
    def limit_bytes(self) -> int:
        return self._store.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        self._store.limit_bytes = limit_bytes

    @property
    def refusal(self) -> str | None:
        """Why no graph is captured any more; None if captures go on, or are complete."""
        return self._graphs.refusal

    def open(self) -> PackedSequence:
        return PackedSequence()

    @torch.inference_mode()
    def fork(self, sequence: PackedSequence) -> PackedSequence:
        return self._store.fork(sequence)

    @torch.inference_mode()
    def crop(self, sequence: PackedSequence, count: int) -> None:
        assert 0 <= count <= sequence.length
        if count:
            self._store.crop(sequence, count)

    def close(self, sequence: PackedSequence) -> None:
        self._store.close(sequence)

    def growth_bytes(self, items: Sequence[tuple[PackedSequence, int]]) -> int:
        return self._store.growth_bytes(items)

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[PackedSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        assert hidden.shape[1] == sum(count for _, count in items)
        self._store.reserve(items)
        step = PackedStep(items, self._windows, self._limits)
        output = self._graphs.forward(step, hidden, self._positions(items) if positions is None else positions[None])
        for sequence, count in items:
            sequence.length += count
        self.forwards += 1
        return output

    @torch.inference_mode()
    def warm_up(self) -> bool:
        count = self._graphs.next_count()
        if count is None:
            return False
        parts = _halves(count)
        sequences = [self.open() for _ in parts]
        try:
            self._grow([(sequence, past) for sequence, past in zip(sequences, PASTS, strict=False) if past])
            one = [(sequences[0], count)]
            self._store.reserve(one)
            self._graphs.capture(self._example(one, 1), self._example(one, 2), self._example(self._reserved(sequences, parts), 3))
        except CacheFullError:
            log.info("there is no memory to capture a graph; the next one is captured after a session has ended")
            return False
        finally:
            for sequence in sequences:
                self.close(sequence)
        return self._graphs.next_count() is not None

    def _reserved(self, sequences: Sequence[PackedSequence], counts: Sequence[int]) -> list[tuple[PackedSequence, int]]:
        items = list(zip(sequences, counts, strict=True))
        self._store.reserve(items)
        return items

    def _grow(self, items: Sequence[tuple[PackedSequence, int]]) -> None:
        """Append random tokens to sequences."""
        self._store.reserve(items)
        self._run(*self._example(items, 0))
        for sequence, count in items:
            sequence.length += count

    def _example(self, items: Sequence[tuple[PackedSequence, int]], seed: int) -> Example:
        """A forward of random tokens. Its positions are the sequences' own, plus `seed`."""
        noise = torch.randn(1, sum(count for _, count in items), self.hidden_size, generator=torch.Generator().manual_seed(seed))
        return PackedStep(items, self._windows, self._limits), noise.to(self.device, self.dtype), self._positions(items) + seed

    def _positions(self, items: Sequence[tuple[PackedSequence, int]]) -> Tensor:
        flat = [position for sequence, count in items for position in range(sequence.length, sequence.length + count)]
        return torch.tensor(flat, device=self.device)[None]

    def _run(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        before = step.calls
        with running(step), self._span.attention_by(ATTENTION):
            output: Tensor = self._span(hidden, position_ids=positions)
        if (calls := step.calls - before) != len(self._windows):
            raise ModelNotSupportedError(f"{calls} of {counted(len(self._windows), 'block')} used the packed attention function")
        return output

    @torch.inference_mode()
    def _measure(self) -> list[BlockShape]:
        step = MeasuringStep(len(self._windows))
        hidden = torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=self.device)
        self._run(step, hidden, torch.zeros(1, 1, dtype=torch.long, device=self.device))
        return [shape for shape in step.shapes if shape is not None]
