"""Turns right padding into left padding during one `generate`.

transformers takes a sequence's next token from its last column. If that is padding, it warns and continues from the
padding, which is never wanted. Here every sequence continues from its last real token, and the columns that the caller gave come back as
they were. (Hops could not reproduce the padding's own output: they see real tokens only.)

Shapes: B sequences, k columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError
from protocols.words import counted
from swarm.client.cache import RemoteCache


def is_right_padded(attention_mask: Tensor | None) -> bool:
    return attention_mask is not None and attention_mask.dim() == 2 and bool(attention_mask[:, -1:].eq(0).any())


def move_left(values: Tensor, attention_mask: Tensor) -> Tensor:
    """`values` [B, k] or [B, k, H] with each sequence's padding in front and its real tokens behind, in their order."""
    order = attention_mask.ne(0).int().argsort(dim=1, stable=True)
    if values.dim() == 3:
        order = order[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, order)


def aligned(inputs: dict[str, Any], past: int) -> dict[str, Any]:
    """The inputs of `generate`, their columns after the `past` ones of the cache padded on the left.

    inputs: `attention_mask` [B, k], and `input_ids` [B, k or k - past] or `inputs_embeds` [B, k, H].
    """
    if inputs.get("position_ids") is not None:
        raise BadRequestError(
            "position_ids came with a prompt that is padded on the right; pad it on the left (padding_side='left')"
        )
    mask = inputs["attention_mask"]
    new = mask[:, past:]
    moved = dict(inputs)
    for name in ("attention_mask", "input_ids", "inputs_embeds"):
        values = inputs.get(name)
        if isinstance(values, Tensor):
            kept = values.shape[1] - new.shape[1]
            moved[name] = torch.cat([values[:, :kept], move_left(values[:, kept:], new)], dim=1)
    return moved


def with_start(inputs: dict[str, Any], cache: RemoteCache | None) -> dict[str, Any]:
    """The inputs of `generate`; without a prompt it feeds a start token, behind what the cache holds, for which it needs the mask."""
    if (
        cache is None
        or cache.rows is None
        or any(inputs.get(key) is not None for key in ("input_ids", "inputs_embeds", "attention_mask"))
    ):
        return inputs
    if any(length != cache.columns for length in cache.rows):
        raise BadRequestError(
            f"past_key_values holds padded sequences, and neither a prompt nor an attention_mask came; pass the attention_mask of all "
            f"{counted(cache.columns, 'column')} and of the start token"
        )
    return {**inputs, "attention_mask": torch.ones(len(cache.rows), cache.columns + 1, dtype=torch.long)}


def with_prompt(sequences: Tensor, prompt: Tensor) -> Tensor:
    """`sequences` [B * n, columns] with the caller's own prompt columns put back."""
    repeated = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
    return torch.cat([repeated.to(sequences), sequences[:, prompt.shape[1] :]], dim=1)
