"""Packed engine: all sequences' tokens on one flat axis.

It is the fastest path, with no padding and no gather. The span runs on [1, T, H] as if it were one sequence, since everything in a block
except attention works token by token. The attention function registered here splits the axis into sequences, appends the keys and values
of each to its own buffer and attends within it. It has no mask function, so transformers builds no masks; windows and attention chunking
come from the config's layer types.

If a model did not call the registered function once for each block, the result would be wrong: every forward counts the calls.
Forwards of few tokens replay captured graphs (`graphs/engine_graphs.py`).

Shapes: T tokens of the step, N query heads, G kv heads, R = N / G, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import get_layer_types_and_kwargs

from node.engines import selftest
from node.engines.graphs.capture import Attending
from node.engines.graphs.engine_graphs import EngineGraphs, Example
from node.engines.sequence_store import BlockShape, Chunking, Mode, PackedSequence, SequenceStore
from node.engines.step_limits import StepLimits
from protocols.errors import CacheFullError, ModelNotSupportedError
from protocols.words import counted
from swarm.models.span import SpanModule

log = logging.getLogger(__name__)

ATTENTION = "murmuration_packed"
"""Name of the attention function in transformers' registry."""

_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_HARMLESS = {"sliding_window", "is_causal", "position_ids", "output_attentions", "use_cache", "cache_position", "layer_idx"}
"""Keyword arguments of an attention function that have no effect here; any other that is not None is refused."""


class _Options:
    """The numbers that a block passes to its attention function."""

    __slots__ = ("scaling", "sinks", "softcap")

    def __init__(self, scaling: float | None, softcap: float | None, sinks: Tensor | None) -> None:
        self.scaling, self.softcap, self.sinks = scaling, softcap, sinks


_STEP: ContextVar[Attending | None] = ContextVar("packed_step", default=None)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: query [1, N, T, D], key and value [1, G, T, D] -> [1, T, N, D].

    RuntimeError if no step runs; ModelNotSupportedError for a mask, or an option that is not known.
    """
    step = _STEP.get()
    if step is None:
        raise RuntimeError("these blocks belong to a packed engine: call its step(), not the span")
    if attention_mask is not None or others:
        unknown = [name for name, given in others.items() if given is not None and name not in _HARMLESS]
        if attention_mask is not None or unknown:
            raise ModelNotSupportedError(f"packed attention does not know {unknown or 'masks'}")
    return step.attend(module.layer_idx, query, key, value, _Options(scaling, softcap, s_aux)), None


class _MeasuringStep:
    """A step of one token that measures what each block keeps for a token."""

    def __init__(self, num_blocks: int) -> None:
        self.calls = 0
        self.shapes: list[BlockShape | None] = [None] * num_blocks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
        assert self.shapes[layer] is None, "one attention a block"
        self.calls += 1
        self.shapes[layer] = BlockShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2)


class _Step:
    """One packed step: the stretch of the flat axis and the buffer of each sequence, and the masks made so far."""

    __slots__ = ("calls", "is_decode", "limits", "masks", "starts", "stretches", "windows")

    def __init__(
        self, items: Sequence[tuple[PackedSequence, int]], windows: Sequence[tuple[int, int]], limits: StepLimits
    ) -> None:
        self.windows, self.limits = windows, limits
        self.calls = 0
        self.is_decode = all(count == 1 for _, count in items)
        self.masks: dict[tuple[int, ...], Tensor] = {}
        self.starts: dict[tuple[int, int], list[int]] = {}
        self.stretches = []
        at = 0
        for sequence, count in items:
            assert sequence.buffer is not None
            self.stretches.append((sequence.buffer, at, at + count, sequence.length, sequence.length + count))
            at += count

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
        self.calls += 1
        window, chunk = self.windows[layer]
        firsts = self.starts.get((window, chunk))
        if firsts is None:
            firsts = self.starts[window, chunk] = [_first_key(past, window, chunk) for _, _, _, past, _ in self.stretches]
        if self.is_decode and options.softcap is None and options.sinks is None:
            return self._decode(layer, query, key, value, firsts, options)
        outputs = []
        for (buffer, start, stop, past, end), first in zip(self.stretches, firsts, strict=True):
            keys, values = buffer.keys[layer], buffer.values[layer]
            keys[:, :, past:end] = key[:, :, start:stop]
            values[:, :, past:end] = value[:, :, start:stop]
            for at, upto in _slices(past, end, first, query.shape[1], options, self.limits):
                begin = first if at == past else _first_key(at, window, chunk)
                part = query[:, :, start + at - past : start + upto - past]
                where = (at, upto, begin, window, chunk)
                outputs.append(self._one_sequence(part, keys[:, :, begin:upto], values[:, :, begin:upto], where, options))
        joined = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
        return joined.transpose(1, 2).contiguous()  # in memory as `_decode` returns it: a graph may have been captured there

    def _decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, firsts: list[int], options: _Options) -> Tensor:
        """One new token of each sequence: every key counts, so a group's R heads become R queries, without mask or repeat.

        Streaming a large weight matrix evicts instructions from the CPU caches, so each extra torch call costs 5 to 20 µs.
        """
        _, num_heads, num_sequences, size = query.shape
        shape = (num_sequences, key.shape[1], num_heads // key.shape[1], size)
        folded = query.reshape(shape) if num_sequences == 1 else query.transpose(1, 2).reshape(shape)
        outputs = []
        for sequence, ((buffer, _, _, past, end), first) in enumerate(zip(self.stretches, firsts, strict=True)):
            keys, values = buffer.keys[layer], buffer.values[layer]
            if num_sequences == 1:
                own_query, own_key, own_value = folded, key, value
            else:
                own_query, own_key, own_value = (
                    folded[sequence : sequence + 1],
                    key.narrow(2, sequence, 1),
                    value.narrow(2, sequence, 1),
                )
            keys.narrow(2, past, 1).copy_(own_key)
            values.narrow(2, past, 1).copy_(own_value)
            own = keys.narrow(2, first, end - first), values.narrow(2, first, end - first)
            outputs.append(F.scaled_dot_product_attention(own_query, *own, scale=options.scaling))
        joined = torch.cat(outputs) if num_sequences > 1 else outputs[0]
        return joined.reshape(1, num_sequences, num_heads, -1)

    def _one_sequence(self, query: Tensor, key: Tensor, value: Tensor, where: tuple[int, ...], options: _Options) -> Tensor:
        _, num_heads, count, size = query.shape
        groups = key.shape[1]
        repeat = num_heads // groups
        if options.softcap is not None or options.sinks is not None:
            return self._capped(query, key, value, where, options)
        if count == 1:  # as in `_decode`
            folded = query.reshape(1, groups, repeat, size)
            return F.scaled_dot_product_attention(folded, key, value, scale=options.scaling).reshape(1, num_heads, 1, -1)
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        past, _, first, window, chunk = where
        if past == first == 0 and (not window or count <= window) and (not chunk or count <= chunk):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=options.scaling)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(where, query.device), scale=options.scaling)

    def _capped(self, query: Tensor, key: Tensor, value: Tensor, where: tuple[int, ...], options: _Options) -> Tensor:
        """Attention with capped scores (gemma2) or with sinks (gpt_oss), as transformers' eager attention computes it."""
        _, num_heads, count, size = query.shape
        repeat = num_heads // key.shape[1]
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        scores = (query @ key.transpose(2, 3)) * (size**-0.5 if options.scaling is None else options.scaling)
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        if count > 1:
            scores = scores.masked_fill(~self._mask(where, query.device), torch.finfo(scores.dtype).min)
        if options.sinks is None:
            return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
        sinks = options.sinks.reshape(1, -1, 1, 1).expand(1, num_heads, count, 1).to(scores.dtype)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32).to(query.dtype)
        return weights[..., :-1] @ value

    def _mask(self, where: tuple[int, ...], device: torch.device) -> Tensor:
        mask = self.masks.get(where)
        if mask is None:
            past, end, first, window, chunk = where
            query = torch.arange(past, end, device=device)[:, None]
            key = torch.arange(first, end, device=device)[None]
            mask = key <= query
            if window:
                mask &= key > query - window
            if chunk:
                mask &= key // chunk == query // chunk
            self.masks[where] = mask
        return mask


def _slices(past: int, end: int, first: int, num_heads: int, options: _Options, limits: StepLimits) -> list[tuple[int, int]]:
    """A sequence's new tokens [past, end) in slices, mostly one, whose mask or capped scores are within `limits`.

    So the memory of a step beside its K/V does not grow with its tokens times its past. The queries of attention are independent.
    """
    is_capped = options.softcap is not None or options.sinks is not None
    if not is_capped and past == first == 0:
        return [(past, end)]  # mostly without a mask; a window's mask has at most MAX_STEP_TOKENS squared bytes
    size = max(1, limits.scores // num_heads // (end - first) if is_capped else limits.mask_bytes // (end - first))
    return [(at, min(at + size, end)) for at in range(past, end, size)]


def _first_key(past: int, window: int, chunk: int) -> int:
    """The first token that the new token number `past` may attend to; earlier ones are not read."""
    first = max(0, past - window + 1) if window else 0
    return max(first, past // chunk * chunk) if chunk else first


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
        AttentionInterface.register(ATTENTION, _attention)
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
        step = _Step(items, self._windows, self._limits)
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
        return _Step(items, self._windows, self._limits), noise.to(self.device, self.dtype), self._positions(items) + seed

    def _positions(self, items: Sequence[tuple[PackedSequence, int]]) -> Tensor:
        flat = [position for sequence, count in items for position in range(sequence.length, sequence.length + count)]
        return torch.tensor(flat, device=self.device)[None]

    def _run(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        before = step.calls
        token = _STEP.set(step)
        try:
            with self._span.attention_by(ATTENTION):
                output: Tensor = self._span(hidden, position_ids=positions)
        finally:
            _STEP.reset(token)
        if (calls := step.calls - before) != len(self._windows):
            raise ModelNotSupportedError(f"{calls} of {counted(len(self._windows), 'block')} used the packed attention function")
        return output

    @torch.inference_mode()
    def _measure(self) -> list[BlockShape]:
        step = _MeasuringStep(len(self._windows))
        hidden = torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=self.device)
        self._run(step, hidden, torch.zeros(1, 1, dtype=torch.long, device=self.device))
        return [shape for shape in step.shapes if shape is not None]
