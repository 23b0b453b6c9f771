"""Serial engines: one sequence a forward. Slow, but right without batching.

`SerialEngine` keeps transformers' own cache for each sequence: for families whose attention ignores masks or mixes states in its own way.
`RecomputeEngine` keeps the inputs of each sequence and runs all of them again at each step: for families that have no cache at all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from node.engines.recurrent import CountingCache, check_chunks
from node.engines.sequence_store import Chunking, Mode
from node.engines.step_limits import StepLimits
from protocols.errors import BadRequestError, CacheFullError, InternalError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

_PLAIN = {DynamicLayer, DynamicSlidingWindowLayer}
_MEASURED_TOKENS = 8
"""Tokens of the first run that measures a cache; longer than the convolutions of recurrent blocks."""


class SerialSequence:
    """One sequence and its own cache of transformers."""

    __slots__ = ("cache", "is_broken", "length")

    def __init__(self) -> None:
        self.cache: Any = None
        self.length = 0
        self.is_broken = False


class SerialEngine:
    """Runs one sequence a forward, with transformers' cache. Contract: `Engine` in `engine.py`."""

    mode: Mode = "serial"

    def __init__(self, span: SpanModule, limit_bytes: int, *, unroll: bool = False, limits: StepLimits | None = None) -> None:
        """unroll: feed a sequence that already has tokens one token at a time. ModelNotSupportedError if this engine cannot work."""
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.forwards = 0
        self._span, self._unroll, self._limits = span, unroll, limits or StepLimits()
        self.chunking: Chunking = "after_first" if unroll else "always"
        kinds = {type(layer) for layer in DynamicCache(config=span.config).layers}
        self._is_plain = kinds <= _PLAIN  # then a cache of plain layers is exact, too: masks make the windows. It can be cropped
        self.can_crop = self._is_plain
        if not self._is_plain and not unroll:
            check_chunks(span)
        self._sequence_bytes, self._token_bytes = self._measure()

    def open(self) -> SerialSequence:
        return SerialSequence()

    @torch.inference_mode()
    def fork(self, sequence: SerialSequence) -> SerialSequence:
        self._check(sequence)
        needed = self._cost(sequence.length) if sequence.length else 0
        self._require(needed)
        twin = SerialSequence()
        twin.cache, twin.length = copy.deepcopy(sequence.cache), sequence.length
        self.used_bytes += needed
        return twin

    @torch.inference_mode()
    def crop(self, sequence: SerialSequence, count: int) -> None:
        """Drop the last `count` tokens. BadRequestError if a block's state cannot be rewound."""
        assert 0 <= count <= sequence.length
        self._check(sequence)
        if count == sequence.length:
            return self.close(sequence)
        if count:
            if not self._is_plain:
                raise BadRequestError("these blocks keep a running state, which cannot be rewound: generate without speculation")
            sequence.cache.crop(-count)
            sequence.length -= count
            self.used_bytes -= count * self._token_bytes

    def close(self, sequence: SerialSequence) -> None:
        self.used_bytes -= self._cost(sequence.length) if sequence.length else 0
        sequence.cache, sequence.length, sequence.is_broken = None, 0, False

    def growth_bytes(self, items: Sequence[tuple[SerialSequence, int]]) -> int:
        return sum(count * self._token_bytes + (0 if sequence.length else self._sequence_bytes) for sequence, count in items)

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[SerialSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        for sequence, _ in items:
            self._check(sequence)
        self._require(self.growth_bytes(items))
        counts = [count for _, count in items]
        places = [None] * len(items) if positions is None else positions.split(counts)
        chunks = zip(items, hidden[0].split(counts), places, strict=True)
        return torch.cat([self._advance(sequence, chunk, place) for (sequence, _), chunk, place in chunks])[None]

    def warm_up(self) -> bool:
        return False

    def _advance(self, sequence: SerialSequence, hidden: Tensor, positions: Tensor | None) -> Tensor:
        if sequence.cache is None:
            sequence.cache = self._new_cache()
        longest = 1 if self._unroll and sequence.length else max(1, self._limits.pairs // (sequence.length + len(hidden)))
        outputs = []
        sequence.is_broken = True  # until the last forward is done: an interrupted one leaves a cache in an unknown state
        for at in range(0, len(hidden), longest):
            part = hidden[None, at : at + longest]
            size = part.shape[1]
            numbers = (
                torch.arange(sequence.length, sequence.length + size, device=self.device)
                if positions is None
                else positions[at : at + size]
            )
            outputs.append(self._span(part, sequence.cache, position_ids=numbers[None].to(self.device))[0])
            sequence.cache.seen += size
            self.used_bytes += size * self._token_bytes + (0 if sequence.length else self._sequence_bytes)
            sequence.length += size
            self.forwards += 1
        sequence.is_broken = False
        return torch.cat(outputs)

    def _check(self, sequence: SerialSequence) -> None:
        if sequence.is_broken:
            raise InternalError("an earlier step of this sequence failed half-way; open the session anew")

    def _new_cache(self) -> CountingCache:
        return CountingCache() if self._is_plain else CountingCache(config=self._span.config)

    def _cost(self, length: int) -> int:
        return self._sequence_bytes + length * self._token_bytes

    def _require(self, needed: int) -> None:
        free = self.limit_bytes - self.used_bytes
        if needed > free:
            raise CacheFullError(
                f"no memory for these tokens: they take {needed} bytes, {free} of {self.limit_bytes} are free; "
                "end a session, or ask another peer"
            )

    @torch.inference_mode()
    def _measure(self) -> tuple[int, int]:
        """(bytes of a sequence, bytes of each token), measured with two runs of different lengths."""
        sizes = []
        for count in (_MEASURED_TOKENS, 2 * _MEASURED_TOKENS):
            cache = self._new_cache()
            self._span(torch.zeros(1, count, self.hidden_size, dtype=self.dtype, device=self.device), cache)
            sizes.append(_cache_bytes(cache))
        token_bytes = (sizes[1] - sizes[0]) // _MEASURED_TOKENS
        if not sizes[0]:
            raise ModelNotSupportedError("these blocks do not use the cache that they are given")
        return sizes[0] - _MEASURED_TOKENS * token_bytes, token_bytes


class RecomputeSequence:
    """One sequence: all of its inputs [length, H], and their positions [length]."""

    __slots__ = ("history", "positions")

    def __init__(self) -> None:
        self.history: Tensor | None = None
        self.positions: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.history is None else len(self.history)


class RecomputeEngine:
    """Keeps inputs instead of keys and values, and runs each sequence from its first token at every step. Contract: `Engine`."""

    mode: Mode = "serial"
    chunking: Chunking = "never"

    def __init__(self, span: SpanModule, limit_bytes: int) -> None:
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.forwards = 0
        self.can_crop = True
        self._span = span
        self._token_bytes = span.hidden_size * span.dtype.itemsize
        if _fills_a_cache(span):
            raise ModelNotSupportedError("it has a cache, but its runs with one differ from its run without")

    def open(self) -> RecomputeSequence:
        return RecomputeSequence()

    def fork(self, sequence: RecomputeSequence) -> RecomputeSequence:
        self._require(sequence.length)
        twin = RecomputeSequence()
        twin.history, twin.positions = sequence.history, sequence.positions  # never written in place
        self.used_bytes += sequence.length * self._token_bytes
        return twin

    @torch.inference_mode()
    def crop(self, sequence: RecomputeSequence, count: int) -> None:
        assert 0 <= count <= sequence.length
        if count == sequence.length:
            return self.close(sequence)
        if count and sequence.history is not None and sequence.positions is not None:
            sequence.history, sequence.positions = sequence.history[:-count].clone(), sequence.positions[:-count].clone()
            self.used_bytes -= count * self._token_bytes

    def close(self, sequence: RecomputeSequence) -> None:
        self.used_bytes -= sequence.length * self._token_bytes
        sequence.history = sequence.positions = None

    def growth_bytes(self, items: Sequence[tuple[RecomputeSequence, int]]) -> int:
        return sum(count for _, count in items) * self._token_bytes

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[RecomputeSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        counts = [count for _, count in items]
        self._require(sum(counts))
        outputs, fed = [], []
        places = [None] * len(items) if positions is None else positions.split(counts)
        for (sequence, count), chunk, place in zip(items, hidden[0].split(counts), places, strict=True):
            numbers = (
                torch.arange(sequence.length, sequence.length + count, device=self.device)
                if place is None
                else place.to(self.device)
            )
            history = chunk.clone() if sequence.history is None else torch.cat([sequence.history, chunk])
            where = numbers if sequence.positions is None else torch.cat([sequence.positions, numbers])
            outputs.append(self._span(history[None], position_ids=where[None])[0, -count:])
            fed.append((sequence, history, where))
            self.forwards += 1
        for sequence, history, where in fed:
            sequence.history, sequence.positions = history, where
        self.used_bytes += sum(counts) * self._token_bytes
        return torch.cat(outputs)[None]

    def warm_up(self) -> bool:
        return False

    def _require(self, num_tokens: int) -> None:
        free = self.limit_bytes - self.used_bytes
        if num_tokens * self._token_bytes > free:
            raise CacheFullError(
                f"no memory for {counted(num_tokens, 'token')}: they take {num_tokens * self._token_bytes} bytes, "
                f"{free} of {self.limit_bytes} are free; end a session, or ask another peer"
            )


@torch.inference_mode()
def _fills_a_cache(span: SpanModule) -> bool:
    """Do these blocks keep anything in transformers' own cache? Then `generate` uses it, and recomputing would differ."""
    try:
        cache = CountingCache(config=span.config)
        span(torch.zeros(1, _MEASURED_TOKENS, span.hidden_size, dtype=span.dtype, device=span.device), cache)
    except Exception:  # of any class: a family with a cache class of its own fails here, but its inputs can be kept
        return False
    return _cache_bytes(cache) > 0


def _cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in the attributes of a cache's layers."""
    found: dict[int, Tensor] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            values = value.values() if isinstance(value, dict) else (value,)
            found |= {id(tensor): tensor for tensor in values if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())
