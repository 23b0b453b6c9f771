"""Serial engines: one row a forward. Slow, and right where batching is not.

`SerialEngine` keeps transformers' own cache per row: for families whose attention ignores masks or mixes states in ways of its own.
`RecomputeEngine` keeps what each row was fed and runs all of it again at each step: for families that have no cache at all.
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
from protocols.errors import BadRequestError, CacheFullError, InternalError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

MAX_PAIRS = 1 << 20
"""New tokens times tokens of a row in one forward: scores of one head. Longer steps are fed in parts."""

_PLAIN = {DynamicLayer, DynamicSlidingWindowLayer}
_LEARN_TOKENS = 8


class SerialSequence:
    """One sequence and its own cache."""

    __slots__ = ("cache", "is_broken", "length")

    def __init__(self) -> None:
        self.cache: Any = None
        self.length = 0
        self.is_broken = False


class SerialEngine:
    """Engine that runs one row a forward, with transformers' cache."""

    mode: Mode = "serial"

    def __init__(self, span: SpanModule, limit_bytes: int, *, unroll: bool = False) -> None:
        """`unroll`: feed a row that has tokens already one token at a time."""
        self.hidden_size, self.dtype, self.device = span.hidden_size, span.dtype, span.device
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.forwards = 0
        self._span, self._unroll = span, unroll
        self.chunking: Chunking = "after_first" if unroll else "always"
        kinds = {type(layer) for layer in DynamicCache(config=span.config).layers}
        self._is_plain = kinds <= _PLAIN  # then a cache of plain layers is exact too (masks make the windows), and can be cropped
        self.can_crop = self._is_plain
        if not self._is_plain and not unroll:
            check_chunks(span)
        self._row_bytes, self._token_bytes = self._learn()

    def open(self) -> SerialSequence:
        return SerialSequence()

    @torch.inference_mode()
    def fork(self, row: SerialSequence) -> SerialSequence:
        self._check(row)
        needed = self._cost(row.length) if row.length else 0
        self._require(needed)
        twin = SerialSequence()
        twin.cache, twin.length = copy.deepcopy(row.cache), row.length
        self.used_bytes += needed
        return twin

    @torch.inference_mode()
    def crop(self, row: SerialSequence, count: int) -> None:
        """Drop the last `count` tokens. BadRequestError where a block's state cannot be rewound."""
        assert 0 <= count <= row.length
        self._check(row)
        if count == row.length:
            return self.close(row)
        if count:
            if not self._is_plain:
                raise BadRequestError("these blocks keep a running state, which cannot be rewound: generate without speculation")
            row.cache.crop(-count)
            row.length -= count
            self.used_bytes -= count * self._token_bytes

    def close(self, row: SerialSequence) -> None:
        self.used_bytes -= self._cost(row.length) if row.length else 0
        row.cache, row.length, row.is_broken = None, 0, False

    def growth_bytes(self, items: Sequence[tuple[SerialSequence, int]]) -> int:
        return sum(count * self._token_bytes + (0 if row.length else self._row_bytes) for row, count in items)

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[SerialSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        for row, _ in items:
            self._check(row)
        self._require(self.growth_bytes(items))
        counts = [count for _, count in items]
        places = [None] * len(items) if positions is None else positions.split(counts)
        pieces = zip(items, hidden[0].split(counts), places, strict=True)
        return torch.cat([self._advance(row, piece, place) for (row, _), piece, place in pieces])[None]

    def warm_up(self) -> bool:
        return False

    def _advance(self, row: SerialSequence, hidden: Tensor, positions: Tensor | None) -> Tensor:
        if row.cache is None:
            row.cache = self._new_cache()
        longest = 1 if self._unroll and row.length else max(1, MAX_PAIRS // (row.length + len(hidden)))
        outputs = []
        row.is_broken = True  # until every part is in: an interrupted forward leaves a cache that nobody can trust
        for at in range(0, len(hidden), longest):
            part = hidden[None, at : at + longest]
            size = part.shape[1]
            numbers = (
                torch.arange(row.length, row.length + size, device=self.device)
                if positions is None
                else positions[at : at + size]
            )
            outputs.append(self._span(part, row.cache, position_ids=numbers[None].to(self.device))[0])
            row.cache.seen += size
            self.used_bytes += size * self._token_bytes + (0 if row.length else self._row_bytes)
            row.length += size
            self.forwards += 1
        row.is_broken = False
        return torch.cat(outputs)

    def _check(self, row: SerialSequence) -> None:
        if row.is_broken:
            raise InternalError("an earlier step of this row failed half-way; open the session anew")

    def _new_cache(self) -> CountingCache:
        return CountingCache() if self._is_plain else CountingCache(config=self._span.config)

    def _cost(self, length: int) -> int:
        return self._row_bytes + length * self._token_bytes

    def _require(self, needed: int) -> None:
        free = self.limit_bytes - self.used_bytes
        if needed > free:
            raise CacheFullError(
                f"no memory for these tokens: they take {needed} bytes, {free} of {self.limit_bytes} are free; "
                "end a session, or ask another peer"
            )

    @torch.inference_mode()
    def _learn(self) -> tuple[int, int]:
        """(bytes a row, bytes a token), from the caches of two runs of different lengths."""
        sizes = []
        for count in (_LEARN_TOKENS, 2 * _LEARN_TOKENS):
            cache = self._new_cache()
            self._span(torch.zeros(1, count, self.hidden_size, dtype=self.dtype, device=self.device), cache)
            sizes.append(_cache_bytes(cache))
        token_bytes = (sizes[1] - sizes[0]) // _LEARN_TOKENS
        if not sizes[0]:
            raise ModelNotSupportedError("these blocks do not use the cache that they are given")
        return sizes[0] - _LEARN_TOKENS * token_bytes, token_bytes


class RecomputeSequence:
    """One sequence: everything it was fed, [length, H], and where its tokens stand."""

    __slots__ = ("history", "positions")

    def __init__(self) -> None:
        self.history: Tensor | None = None
        self.positions: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.history is None else len(self.history)


class RecomputeEngine:
    """Engine that keeps inputs instead of keys and values, and runs each row from its first token at every step."""

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

    def fork(self, row: RecomputeSequence) -> RecomputeSequence:
        self._require(row.length)
        twin = RecomputeSequence()
        twin.history, twin.positions = row.history, row.positions  # never written in place
        self.used_bytes += row.length * self._token_bytes
        return twin

    @torch.inference_mode()
    def crop(self, row: RecomputeSequence, count: int) -> None:
        assert 0 <= count <= row.length
        if count == row.length:
            return self.close(row)
        if count and row.history is not None and row.positions is not None:
            row.history, row.positions = row.history[:-count].clone(), row.positions[:-count].clone()
            self.used_bytes -= count * self._token_bytes

    def close(self, row: RecomputeSequence) -> None:
        self.used_bytes -= row.length * self._token_bytes
        row.history = row.positions = None

    def growth_bytes(self, items: Sequence[tuple[RecomputeSequence, int]]) -> int:
        return sum(count for _, count in items) * self._token_bytes

    @torch.inference_mode()
    def step(self, items: Sequence[tuple[RecomputeSequence, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        counts = [count for _, count in items]
        self._require(sum(counts))
        outputs, fed = [], []
        places = [None] * len(items) if positions is None else positions.split(counts)
        for (row, count), piece, place in zip(items, hidden[0].split(counts), places, strict=True):
            numbers = torch.arange(row.length, row.length + count, device=self.device) if place is None else place.to(self.device)
            history = piece.clone() if row.history is None else torch.cat([row.history, piece])
            where = numbers if row.positions is None else torch.cat([row.positions, numbers])
            outputs.append(self._span(history[None], position_ids=where[None])[0, -count:])
            fed.append((row, history, where))
            self.forwards += 1
        for row, history, where in fed:
            row.history, row.positions = history, where
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
    """Whether these blocks keep anything in transformers' own cache; then `generate` uses it, and recomputing would differ."""
    try:
        cache = CountingCache(config=span.config)
        span(torch.zeros(1, _LEARN_TOKENS, span.hidden_size, dtype=span.dtype, device=span.device), cache)
    except Exception:  # a family with a cache class of its own fails in its own way; its inputs can still be kept
        return False
    return _cache_bytes(cache) > 0


def _cache_bytes(cache: Any) -> int:
    """Bytes of every tensor that a cache's layers hold, whatever they call it."""
    found: dict[int, Tensor] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            values = value.values() if isinstance(value, dict) else (value,)
            found |= {id(tensor): tensor for tensor in values if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())
