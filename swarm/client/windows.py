"""Masks with holes, in models whose attention has a window.

The one case in which sequences of real tokens differ from transformers.

transformers counts a window (or a span of chunked attention) in columns, holes included. Hops get real tokens only, so here
those are counted.
Padding on the left or right of a sequence's tokens changes nothing: the columns between its tokens are then all real.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_LIMITED = re.compile("sliding|chunk|local")
"""Kinds of blocks that see a part of what came before."""


def window(config: Any) -> int | None:
    """Columns that some block of the model sees at most; None if each sees all."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if getattr(text, "use_sliding_window", None) is False or (kinds and not any(_LIMITED.search(str(kind)) for kind in kinds)):
        return None
    sizes = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
    return next((size for size in sizes if isinstance(size, int)), None)


def has_hole(mask_Bk: Tensor) -> bool:
    """Padding between two real tokens of a sequence."""
    real = mask_Bk.ne(0)
    before, after = real.cumsum(1).gt(0), real.flip(1).cumsum(1).flip(1).gt(0)
    return bool((before & after & ~real).any())


def is_padded_before(mask_Bk: Tensor) -> bool:
    """Padding precedes a real token of some sequence: on the left, or as a hole."""
    real = mask_Bk.ne(0)
    return bool((real & real.cumsum(1).ne(torch.arange(1, real.shape[1] + 1, device=real.device))).any())


def column_positions(mask_Bk: Tensor, columns: int) -> Tensor:
    """[T] positions that transformers gives the real tokens of the last `columns` columns if none are given: holes count.

    transformers counts from column 0, here each sequence is counted from its first real column: rotary embeddings see differences only.
    """
    real = mask_Bk.ne(0)
    places = torch.arange(real.shape[1], device=real.device) - real.int().argmax(1)[:, None]
    return places[:, -columns:][real[:, -columns:]]


def warn_of_hole(config: Any, attention_mask: Tensor) -> None:
    """A mask with a hole came: say it once in a process, if it matters, for the window is shorter than the mask."""
    size = window(config)
    if size is not None and attention_mask.shape[1] > size:
        _warn(size)


@cache
def _warn(size: int) -> None:
    log.warning(
        "attention_mask has padding between real tokens, and this model attends to %d tokens at most: here these are real tokens, "
        "transformers counts the padding too, so results differ; pad on the left to have the same",
        size,
    )
