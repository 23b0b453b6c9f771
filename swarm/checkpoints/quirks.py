"""Families that cannot be served as they are, with the reason.

No rule can tell them. They are data here, so that algorithms hold no names.

Most families are not in here: whether one can be served is found out by loading it (`chain.py`, the engines' self-tests).
An entry exists only if those tests cannot see the fault. Source of the entries: research/blocks.md section 2.
"""

from __future__ import annotations

import re
from typing import Any

from protocols.errors import ModelNotSupportedError

_STREAMS = "its hidden state is several residual streams at once, wider than hidden_size"

REFUSED: dict[str, str] = {
    "zamba": "its blocks share weights with each other",
    "zamba2": "its blocks share weights with each other",
    "hy_v4": "a block reads another block's attention index",
    "inkling2_text": "a block reads another block's residual",
    "gemma3n": "a block reads other blocks' keys and values, and the token ids",
    "gemma3n_text": "a block reads other blocks' keys and values, and the token ids",
    "qwen4_exp": _STREAMS,
    "qwen4_exp_text": _STREAMS,
    "hrm_text": "its blocks are run in turns, several times for a token: two stacks that feed each other, and no chain",
    "longcat_flash": "each entry of its block list is two blocks with two caches, which no span can number yet",
    "mllama": "some of its blocks attend to an image's states, which hops do not get",
    "mllama_text_model": "some of its blocks attend to an image's states, which hops do not get",
    "git": "its image encoder stands inside of its decoder, and spans do not leave it out yet",
    "rwkv": "its running state is kept by means of its own, outside of transformers' caches, and its first block has a norm more",
    "cpmant": "its attention reads a bias that is made from the token ids",
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
    """ModelNotSupportedError if the config names a family or a feature that is known not to be a chain of blocks."""
    reason = REFUSED.get(kind)
    if reason is None and getattr(text_config, "is_encoder_decoder", False):
        reason = "encoder-decoder models are not served yet"
    if reason is None:
        reason = next((reason for key, reason in REFUSED_FEATURES.items() if getattr(text_config, key, None)), None)
    if reason is not None:
        raise ModelNotSupportedError(f"model type {kind!r} cannot be served in spans: {reason}")
