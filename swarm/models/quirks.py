"""What no rule can tell: families that cannot be served as they are, with the reason. Data, so that algorithms hold no names.

Most families are not in here: whether one can be served is found out by loading it (`chain.py`, the engines' self-tests).
A row exists only where those tests cannot see the fault. Source of the rows: research/blocks.md section 2.
"""

from __future__ import annotations

import re
from typing import Any

from protocols.errors import ModelNotSupportedError

_ENCODER_DECODER = "it is one half of an encoder-decoder model, and those are not served yet"
_TWO_TIED_HEADS = "its head is tied through a second module, which the thin client does not rebuild"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ["bart", "mbart", "marian", "pegasus", "plbart", "mvp", "blenderbot", "blenderbot-small", "bigbird_pegasus", "whisper"],
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        ["roberta", "camembert", "xlm-roberta", "roberta-prelayernorm", "data2vec-text", "bert-generation"], _TWO_TIED_HEADS
    ),
    "zamba": "its blocks share weights with each other",
    "zamba2": "its blocks share weights with each other",
    "hy_v4": "a block reads another block's attention index",
    "inkling2_text": "a block reads another block's residual",
    "gemma3n": "a block reads other blocks' keys and values, and the token ids",
    "gemma3n_text": "a block reads other blocks' keys and values, and the token ids",
    "minimax": "its attention wants a cache class of its own, which holds what no hop keeps",
    "prophetnet": "it has no list with one entry per block",
    "xlnet": "its blocks carry two streams",
    "reformer": "its blocks carry two streams",
}
"""`model_type` -> why not."""

TOWER = re.compile(r"vision|visual|image|audio|speech|sound|patcher")
"""Marks tensor names of what a multimodal checkpoint has besides the language model's blocks; it may be the heavier part."""

REFUSED_FEATURES: dict[str, str] = {
    "num_kv_shared_layers": "a block reads other blocks' keys and values (num_kv_shared_layers)",
    "hidden_size_per_layer_input": "every block reads the token ids (hidden_size_per_layer_input)",
}
"""Config entry that is neither 0 nor absent -> why not."""


def refuse_known(kind: str, text_config: Any) -> None:
    """ModelNotSupportedError where the config names a family or a feature that is known not to be a chain of blocks."""
    reason = REFUSED.get(kind)
    if reason is None and getattr(text_config, "is_encoder_decoder", False):
        reason = "encoder-decoder models are not served yet"
    if reason is None:
        reason = next((reason for key, reason in REFUSED_FEATURES.items() if getattr(text_config, key, None)), None)
    if reason is not None:
        raise ModelNotSupportedError(f"model type {kind!r} cannot be served in spans: {reason}")
