"""Attention of the packed engine, sequence by sequence on a flat axis.

transformers calls `attention` by its registered name, once for each block. It appends the keys and values of each sequence to its own
buffer.

Shapes: T tokens of the step, N query heads, G kv heads, R = N / G, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from node.engines.graphs.capture import Attending
from node.engines.sequence_store import BlockShape, PackedSequence
from node.engines.step_limits import StepLimits
from protocols.errors import ModelNotSupportedError

_HARMLESS = {
    "sliding_window",
    "is_causal",
    "dropout",
    "position_ids",
    "output_attentions",
    "use_cache",
    "cache_position",
    "layer_idx",
}
"""Keyword arguments of an attention function that have no effect here; any other that is not None is refused."""


class Options:
    """The numbers that a block passes to its attention function."""

    __slots__ = ("scaling", "sinks", "softcap")

    def __init__(
        self, scaling: float | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **others: Any
    ) -> None:
        """By transformers' names. ModelNotSupportedError for an option that is not known."""
        self.scaling, self.softcap, self.sinks = scaling, softcap, s_aux
        if others and (unknown := [name for name, given in others.items() if given is not None and name not in _HARMLESS]):
            raise ModelNotSupportedError(f"packed attention does not know {unknown}")


_STEP: ContextVar[Attending | None] = ContextVar("packed_step", default=None)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: query [1, N, T, D], key and value [1, G, T, D] -> [1, T, N, D].

    RuntimeError if no step runs; ModelNotSupportedError for a mask, or an option that is not known.
    """
    step = _STEP.get()
    if step is None:
        raise RuntimeError("these blocks belong to a packed engine: call its step(), not the span")
    if attention_mask is not None:
        raise ModelNotSupportedError("packed attention does not know masks")
    return step.attend(module.layer_idx, query, key, value, Options(**options)), None


@contextmanager
def running(step: Attending) -> Iterator[None]:
    """`attention` belongs to this step, within the block."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


class MeasuringStep:
    """A step of one token that measures what each block keeps for a token."""

    def __init__(self, num_blocks: int) -> None:
        self.calls = 0
        self.shapes: list[BlockShape | None] = [None] * num_blocks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        assert self.shapes[layer] is None, "one attention a block"
        self.calls += 1
        self.shapes[layer] = BlockShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2)


class PackedStep:
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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
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

    def _decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, firsts: list[int], options: Options) -> Tensor:
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

    def _one_sequence(self, query: Tensor, key: Tensor, value: Tensor, where: tuple[int, ...], options: Options) -> Tensor:
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

    def _capped(self, query: Tensor, key: Tensor, value: Tensor, where: tuple[int, ...], options: Options) -> Tensor:
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


def _slices(past: int, end: int, first: int, num_heads: int, options: Options, limits: StepLimits) -> list[tuple[int, int]]:
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
