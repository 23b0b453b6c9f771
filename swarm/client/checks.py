"""What a caller may ask of a model.

Each rule, and the one line that says what, got, expected and next step.

Everything here is decided before a byte is sent. Values in, BadRequestError out; nothing is kept.

Shapes: B sequences, q new columns (padding included), k = columns so far + q.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from protocols.defaults import MAX_ROWS
from protocols.errors import BadRequestError
from protocols.inference import PASS_ON, StepSpec
from protocols.words import counted

_RUNNING = re.compile("linear|conv|mamba|recurrent|hybrid")
"""Kinds of blocks that keep a state beside, or instead of, each token's keys and values."""


def check_ids(input_ids: object, vocab_size: int) -> None:
    """Token ids as [B, q] integers in [0, vocab_size), with B and q at least 1."""
    if not isinstance(input_ids, Tensor):
        raise BadRequestError(
            f"input_ids must be a tensor [batch, tokens], got {type(input_ids).__name__}; try tokenizer(text, return_tensors='pt')"
        )
    if input_ids.dim() != 2 or not 1 <= input_ids.shape[0] <= MAX_ROWS:
        raise BadRequestError(
            f"input_ids must be [batch, tokens] with 1 to {MAX_ROWS} sequences, got shape {list(input_ids.shape)}"
        )
    if input_ids.shape[1] == 0:  # before the dtype: a tokenizer makes float32 of an empty text
        raise BadRequestError("the prompt is empty: 0 tokens, expected at least 1; give some text, or a start token")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise BadRequestError(f"token ids must be integers, got {input_ids.dtype}")
    low, high = (int(edge) for edge in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise BadRequestError(
            f"token id {bad} is out of range: this model has ids 0 to {vocab_size - 1}; is it the model's own tokenizer?"
        )


def check_embeds(inputs_embeds: Tensor) -> None:
    """Embeddings as [B, q, H] with B and q at least 1."""
    if inputs_embeds.dim() != 3 or 0 in inputs_embeds.shape[:2] or inputs_embeds.shape[0] > MAX_ROWS:
        raise BadRequestError(
            f"inputs_embeds must be [batch, tokens, width] with 1 to {MAX_ROWS} sequences, got shape {list(inputs_embeds.shape)}"
        )


def check_inputs(ids: object, embeds: object, vocab_size: int) -> tuple[int, int]:
    """(B, q) of the new tokens, which come as ids or as embeddings."""
    if (ids is None) == (embeds is None):
        raise BadRequestError("give either input_ids or inputs_embeds, and not both")
    if isinstance(embeds, Tensor):
        check_embeds(embeds)
        return embeds.shape[0], embeds.shape[1]
    check_ids(ids, vocab_size)
    assert isinstance(ids, Tensor)
    return ids.shape[0], ids.shape[1]


def check_differentiable(spec: StepSpec, dtype: torch.dtype, *, has_cache: bool, has_positions: bool) -> None:
    """BadRequestError if a gradient is asked of a step that cannot have one. dtype: of the route."""
    if spec != PASS_ON:
        raise BadRequestError(
            "a thin model holds no head, so no gradient begins here: load it without thin=True, or use torch.no_grad()"
        )
    if has_cache:
        raise BadRequestError(
            "no gradient passes keys and values, which stay at the hops: bring all tokens in one call, without past_key_values or a "
            "session, and with use_cache=False; or use torch.no_grad()"
        )
    if has_positions:
        raise BadRequestError(
            "gradients need positions that count each sequence's real tokens from 0: leave position_ids out, pad on one side, "
            "or use torch.no_grad()"
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise BadRequestError(
            f"gradients vanish in {str(dtype).removeprefix('torch.')}: load the model with dtype=float32 or bfloat16, if nodes serve that"
        )


def check_mask(attention_mask: object, rows: int, columns: int, past: int, lengths: Sequence[int] | None) -> Tensor | None:
    """Which of the new columns are real, [B, q] bool; None if all are.

    columns: q; past: columns that the cache holds; lengths: real tokens per sequence in the cache.
    Hops see sequences of real tokens under a causal mask, so a mask may only say what is padding, and a later one must say the same.
    Padding between real tokens takes no position (transformers counts it if no position_ids come), and no place in a sliding window
    (`windows.py`).
    """
    if attention_mask is None:
        if lengths is not None and any(length != past for length in lengths):
            raise BadRequestError(
                "past_key_values holds padded sequences, but the new tokens have no attention_mask; pass the mask of all columns so far"
            )
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        got = f"shape {list(attention_mask.shape)}" if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise BadRequestError(
            f"attention_mask must be [batch, columns], 0 = padding, got {got}; hops attend causally and take no other mask"
        )
    if list(attention_mask.shape) != [rows, past + columns]:
        raise BadRequestError(
            f"attention_mask must be [{rows}, {past + columns}] ({counted(past, 'column')} in past_key_values + {columns} new), "
            f"got {list(attention_mask.shape)}"
        )
    if attention_mask.is_floating_point() and not bool((attention_mask >= 0).all()):
        raise BadRequestError(
            "attention_mask must be 0 at padding and 1 elsewhere, got negative or undefined values: that is a mask to be added to scores; "
            "pass the tokenizer's"
        )
    mask = attention_mask.ne(0)
    if past and mask[:, :past].sum(1).tolist() != list(lengths or []):
        raise BadRequestError(
            "attention_mask disagrees with past_key_values about which of the earlier columns are padding; it cannot change later"
        )
    new = mask[:, past:]
    return None if bool(new.all()) else new


def check_prompt_mask(attention_mask: Tensor) -> None:
    """Every sequence of a whole prompt has at least one real token."""
    empty = attention_mask.ne(0).any(1).logical_not().nonzero()
    if len(empty):
        raise BadRequestError(
            f"sequence {int(empty[0])} of the prompt is empty: its attention_mask is 0 everywhere; give it a token, or leave it out"
        )


def check_last_column(real: Tensor, before: Sequence[int], counts: Sequence[int]) -> None:
    """Where only the last columns are wanted, they must be real: the next token is taken from them.

    A sequence that has no real token yet is left padding that fills a whole prefill chunk.
    """
    for row, is_real in enumerate(real[:, -1].tolist()):
        if not is_real and before[row] + counts[row]:
            raise BadRequestError(
                f"sequence {row} ends in padding, where its next token is taken; pad on the left, or pass attention_mask to generate"
            )


def check_rows(rows: int, lengths: Sequence[int] | None, holder: str = "past_key_values") -> None:
    """A step must have as many sequences as the cache that it continues."""
    if lengths is not None and rows != len(lengths):
        raise BadRequestError(
            f"{holder} holds {counted(len(lengths), 'sequence')}, but {rows} came; pass as many, or start a new one"
        )


def check_length(longest: int, limit: int | None, new: int = 0) -> None:
    """The longest sequence, and the `new` tokens that are to be fed after it, must fit the model's positions.

    The last new token is never fed: a prompt of `limit` tokens still has a next token.
    """
    if limit is None or longest + new <= limit:
        return
    if longest > limit:
        raise BadRequestError(
            f"the prompt is too long: {counted(longest, 'token')}, this model's limit is {limit}; shorten it by {longest - limit}"
        )
    raise BadRequestError(
        f"{counted(longest, 'token')} of prompt and {new + 1} new ones exceed this model's limit of {limit}; "
        f"ask for at most {limit - longest + 1} (max_new_tokens)"
    )


def running_state(config: Any, is_stateful: bool) -> str | None:
    """The kind of running state that a model keeps beside, or instead of, each token's keys and values; "" if it names none; None if it
    keeps none.

    is_stateful: what transformers says of the model's class. Models that name their kinds of blocks tell by those (lfm2).
    """
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    kind = next((str(kind) for kind in kinds if _RUNNING.search(str(kind))), None)
    return "" if kind is None and is_stateful else kind


def check_rewindable(config: Any, is_stateful: bool) -> None:
    """Guesses that were wrong are forgotten, which a running state cannot do: it holds a text, and not each of its tokens."""
    kind = running_state(config, is_stateful)
    if kind is not None:
        raise BadRequestError(
            f"{config.get_text_config(decoder=True).model_type} keeps a running state{f' ({kind})' if kind else ''}, "
            "which cannot take back what was guessed wrong; generate without speculation"
        )


def wide_positions(position_ids: object, rows: int, columns: int) -> Tensor | None:
    """The caller's `position_ids`, [B, q] or [1, q] integers, as [B, q]."""
    if position_ids is None:
        return None
    if not isinstance(position_ids, Tensor) or position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        got = position_ids.dtype if isinstance(position_ids, Tensor) else type(position_ids).__name__
        raise BadRequestError(f"position_ids must be a tensor of integers [batch, tokens], got {got}")
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, rows):
        raise BadRequestError(
            f"position_ids must be [batch, tokens], got shape {list(position_ids.shape)} for {counted(rows, 'sequence')}"
        )
    if position_ids.shape[1] != columns:
        raise BadRequestError(
            f"position_ids must have a column per new token, got {counted(position_ids.shape[1], 'column')} "
            f"for {counted(columns, 'column')} of new tokens"
        )
    return position_ids.to(torch.long).expand(rows, -1)


def custom_positions(
    positions: Tensor | None, real: Tensor | None, counts: Sequence[int], lengths: Sequence[int]
) -> Tensor | None:
    """[T] positions of the real tokens if the caller's differ from each sequence's own count, else None.

    positions: [B, q]; real: [B, q] bool or None; counts: new tokens of each sequence, lengths: those before this step.
    """
    if positions is None:
        return None
    given = positions.reshape(-1) if real is None else positions[real]
    default = [place for old, new in zip(lengths, counts, strict=True) for place in range(old, old + new)]
    if given.tolist() == default:
        return None
    if int(given.min()) < 0:
        raise BadRequestError(f"position_ids must not be negative on real tokens, got {int(given.min())}")
    return given
