"""Blocks that keep a running state: does a prefill chunk continue it?

Some families continue a state for single tokens only (mamba and jamba in transformers 5.23 start a prefill chunk from an empty state).
Outputs may not show it: if the past matters little to a test's noise, the error is as small as rounding. So this test compares the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from protocols.errors import ModelNotSupportedError
from swarm.models.span import SpanModule

_PAST_TOKENS, _CHUNK_TOKENS = 7, 2
CLOSE = 0.1
"""Largest relative distance of a state after a prefill chunk from the one after single tokens. Measured on 14 families in three dtypes:
at most 0.022 if the state is continued (bfloat16), 0.25 to 0.95 if it is not."""


class CountingCache(DynamicCache):  # type: ignore[misc]
    """A DynamicCache that knows its length even if no block of the span has attention; its user adds to `seen`."""

    seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if layer_idx == 0 and not self._has_attention():
            return self.seen
        return int(super().get_seq_length(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if layer_idx == 0 and not self._has_attention():
            return self.seen + query_length, 0
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        return length, offset

    def _has_attention(self) -> bool:
        return not self.layers or any(isinstance(layer, CacheLayerMixin) for layer in self.layers)


@torch.inference_mode()
def check_chunks(span: SpanModule) -> None:
    """ModelNotSupportedError if a running state after a prefill chunk differs from the one after the same tokens one by one."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, _PAST_TOKENS + _CHUNK_TOKENS, span.hidden_size, generator=generator).to(span.device, span.dtype)
    at_once = _states(span, hidden, [_PAST_TOKENS, _CHUNK_TOKENS])
    one_by_one = _states(span, hidden, [_PAST_TOKENS, *[1] * _CHUNK_TOKENS])
    for state, expected in zip(at_once, one_by_one, strict=True):
        distance = float((state.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12))
        if not distance <= CLOSE:
            raise ModelNotSupportedError(f"a prefill chunk does not go on from the state before it (distance {distance:.1e})")


def _states(span: SpanModule, hidden: Tensor, counts: Sequence[int]) -> list[Tensor]:
    cache: Any = CountingCache(config=span.config)
    for chunk in hidden.split(list(counts), dim=1):
        positions = torch.arange(cache.seen, cache.seen + chunk.shape[1], device=span.device)[None]
        span(chunk, cache, position_ids=positions)
        cache.seen += chunk.shape[1]
    layers = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    found = [tensor for layer in layers for tensor in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    return [tensor for tensor in found if tensor is not None]
