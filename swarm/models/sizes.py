"""How much memory blocks take, from headers and config alone."""

from __future__ import annotations

from typing import Any

import torch

from protocols.ids import Span
from protocols.units import Blocks, Ends
from swarm.models.checkpoint import Checkpoint
from swarm.models.loading import stored_names


def unit_bytes(checkpoint: Checkpoint, unit: Blocks | Ends, dtype: torch.dtype) -> int:
    """Bytes of a unit's weights when loaded in `dtype`; a tied head is stored, and counted, once."""
    if isinstance(unit, Blocks):
        return sum(checkpoint.block_values[unit.start : unit.stop]) * dtype.itemsize
    return sum(checkpoint.tensors[name].num_values for name in stored_names(checkpoint, unit)) * dtype.itemsize


def kv_bytes_per_token(config: Any, span: Span, dtype: torch.dtype) -> int:
    """Bytes that one more token of one sequence takes in blocks `span`: an estimate for planning, from the config.

    Engines measure the truth from the first write. Where the config says little, this errs upwards (all blocks attend, one kv head
    for each query head). At least 1, even if no block attends.
    """
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * span.stop
    attending = [block for block in range(span.start, span.stop) if _keeps_tokens(kinds[block])]
    layers = text.per_layer_config  # head sizes may differ from block to block (gemma4)
    return max(1, sum(_values_per_token(layers[block]) for block in attending) * dtype.itemsize)


def _keeps_tokens(kind: str) -> bool:
    return "hybrid" in kind or ("attention" in kind and "linear" not in kind)


def _values_per_token(config: Any) -> int:
    heads = _first(config, "num_attention_heads", "n_head", "num_heads") or 1
    head_size = _first(config, "head_dim") or config.hidden_size // heads
    nope, rope, value = (_first(config, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if nope and rope and value:  # latent attention: keys and values differ in size, and are kept for every head
        return heads * (nope + rope + value)
    kv_heads = _first(config, "num_key_value_heads", "num_kv_heads") or heads
    return 2 * kv_heads * head_size


def _first(config: Any, *names: str) -> int | None:
    """The first of these entries that is a positive number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
