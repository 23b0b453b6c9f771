"""Tiny configurations of every causal language model of transformers.

Shrunk by rule; by hand if the rule makes an invalid one.

`all_configurations()` names them: a model type by its own name, a form of it as `type: form`. The rule (`shrunk`) takes a
config class's defaults, and sets every size that it knows by name to a small one. `BY_HAND` says what else a type
needs; `VARIANTS` are further forms of a type (other rope, tied heads, windows, experts). Those of `tests/families.py` come on top.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import transformers as T
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import FAMILIES

NUM_BLOCKS = 4
WINDOW = 6

_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers",
           "num_encoder_layers", "depth")  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
          "num_encoder_attention_heads", "num_decoder_attention_heads")  # fmt: skip
_WIDTHS = ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size", "dim_model", "emb_dim")
_INNER = ("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "n_inner", "ffn_hidden_size", "d_inner", "dim_ff",
          "intermediate_size_mlp", "dense_intermediate_size")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_EXPERT_WIDTHS = ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size",
                  "moe_shared_expert_intermediate_size")  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "max_source_positions")

SMALL: dict[str, int | bool] = {
    **dict.fromkeys(_BLOCKS, NUM_BLOCKS),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_WIDTHS, 64),
    **dict.fromkeys(_INNER, 96),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_EXPERT_WIDTHS, 48),
    **dict.fromkeys(_POSITIONS, 256),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim", "o_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "qk_rope_head_dim", "index_topk", "rotary_dim"), 8),
    **dict.fromkeys(("mamba_chunk_size", "mamba_d_head", "mamba_head_dim"), 16),
    **{"vocab_size": 256, "sliding_window": WINDOW, "attention_chunk_size": 8, "linear_num_value_heads": 4},
    **{"mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "is_decoder": True},
    **{"vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8},
}
"""Size of a config, by the name of its entry."""

_ONLY_WHERE_SET = ("sliding_window", "head_dim", "num_key_value_heads", "q_lora_rank", "kv_lora_rank", "attention_chunk_size", "n_inner",
                   "mamba_dt_rank", "rotary_dim")  # fmt: skip
"""Entries whose absence says something about the architecture."""


def _whole_rope(config: Any) -> dict[str, Any]:
    """Latent attention: the rotary part alone counts as the head size, and every head has keys of its own."""
    return {"head_dim": 8, "num_key_value_heads": 4} if "qk_rope_head_dim" in _entries(config) else {}


def _entries(config: Any) -> set[str]:
    return (set(config.to_dict()) | set(inspect.signature(type(config).__init__).parameters)) - set(config.attribute_map or {})


def _small_entries(config: Any) -> dict[str, Any]:
    """What to set so that `config`, which holds a class's defaults, becomes tiny."""
    entries, changed = _entries(config), dict[str, Any]()
    for name, size in SMALL.items():
        now = _entry(config, name)
        if name in entries and not isinstance(now, list | tuple | dict) and not (now is None and name in _ONLY_WHERE_SET):
            changed[name] = size
    for name in sorted(entries):
        now = _entry(config, name)
        if isinstance(now, list | tuple) and len(now) > NUM_BLOCKS and name.endswith(("layer_types", "layers_block_type")):
            kinds = list(dict.fromkeys(now))
            changed[name] = (kinds * NUM_BLOCKS)[:NUM_BLOCKS]
    return {**changed, **_whole_rope(config)}


def _entry(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # it differs from block to block
        return None


def shrunk(kind: str, changes: dict[str, Any] | None = None) -> Any:
    """A tiny config of model type `kind`; `changes` go on top of `BY_HAND`. Its parts (text, images) are shrunk as types of their own."""
    return _shrunk(T.CONFIG_MAPPING[kind](), changes)


def _shrunk(default: Any, changes: dict[str, Any] | None = None) -> Any:
    kind = default.model_type
    by_hand = BY_HAND.get(kind, {}) | (changes or {})
    parts = {name: getattr(default, name, None) for name in default.sub_configs}
    small = {name: _shrunk(part).to_dict() for name, part in parts.items() if part is not None and part.model_type}
    return type(default)(**{**_small_entries(default), **small, **by_hand})


# --- what the rule cannot know

_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_MAMBA_FIRST = ["mamba", "attention"] * 2
_UNTIED = {"tie_word_embeddings": False}
_GEMMA4: dict[str, Any] = {"layer_types": _ALTERNATING, "head_dim": 16, "num_kv_shared_layers": 0}

BY_HAND: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_key_value_heads": 4, "head_dim": 16, "n_group": 1, "layer_group_size": 2, "num_mtp_layers": 0},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8},
    "bart": _UNTIED,
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "use_dsa": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "head_dim": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "shared_experts_intermediate_size": 48,
    },
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense"] * 4,
        "adapter_in_dim": 64,
        "adapter_out_dim": 64,
        "per_layer_config": {},
    },
    "dots3_note_audio_encoder": {"adapter_out_dim": 64, "adapter_input_size": 64},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma2": {**_UNTIED, "query_pre_attn_scalar": 16},
    "gemma3": _UNTIED,
    "gemma3_text": {**_UNTIED, "query_pre_attn_scalar": 16, "layer_types": _ALTERNATING},
    "gemma3n_text": {
        "intermediate_size": [96] * 4,
        "num_kv_shared_layers": 0,
        "layer_types": _ALTERNATING,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**_GEMMA4, **_UNTIED, "hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {**_GEMMA4, **_UNTIED},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": _MAMBA_FIRST},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    "ministral": {"head_dim": 16},
    "mvp": _UNTIED,
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
    "plbart": _UNTIED,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 1,
    },
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32], "num_hidden_layers": 4},
    "roc_bert": _UNTIED,
    "xlm": {**_UNTIED, "causal": True},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> entries that the rule gets wrong, or does not know."""

_TIED = {"tie_word_embeddings": True}


def _rope(kind: str, **entries: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **entries}}


_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bloom": {"post-norm residual": {**_UNTIED, "apply_residual_connection_post_layernorm": True}, "untied": _UNTIED},
    "cohere": {"query-key norm": {"use_qk_norm": True}},
    "cohere2": {"window": {"layer_types": _ALTERNATING, "sliding_window": WINDOW}},
    "deepseek_v2": {"no query latent": {"q_lora_rank": None}, "grouped router": {"topk_method": "group_limited_greedy", "n_group": 2}},
    "deepseek_v3": {"no query latent": {"q_lora_rank": None}, "all dense": {"first_k_dense_replace": 4}, "yarn": _YARN},
    "exaone4": {"window": {"sliding_window": WINDOW, "layer_types": _ALTERNATING}},
    "falcon": {
        "alibi": {**_UNTIED, "alibi": True, "new_decoder_architecture": False},
        "alibi, one key": {**_UNTIED, "alibi": True, "multi_query": True, "new_decoder_architecture": False},
        "new decoder": {**_UNTIED, "new_decoder_architecture": True, "num_kv_heads": 2},
        "sequential": {**_UNTIED, "parallel_attn": False, "bias": True},
    },
    "gemma": {"untied": _UNTIED},
    "gemma2": {"no soft caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None}},
    "gpt2": {"scaled by block": {"scale_attn_by_inverse_layer_idx": True}, "untied": _UNTIED},
    "gpt_bigcode": {"all heads": {"multi_query": False}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}, "all rotary": _rope("default", partial_rotary_factor=1.0)},
    "gpt_oss": {"no window": {"layer_types": ["full_attention"] * 4}, "yarn": _YARN},
    "granite": {"multipliers": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}, "tied": _TIED},
    "llama": {
        "tied": _TIED,
        "biases": {"attention_bias": True, "mlp_bias": True},
        "one key": {"num_key_value_heads": 1},
        "all heads": {"num_key_value_heads": 4},
        "wide heads": {"head_dim": 32},
        "linear rope": _rope("linear", factor=2.0),
        "dynamic rope": _rope("dynamic", factor=2.0),
        "yarn": _YARN,
        "llama3 rope": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    },
    "mistral": {"no window": {"sliding_window": None}, "window": {"sliding_window": WINDOW}},
    "mixtral": {"window": {"sliding_window": WINDOW}, "one expert": {"num_experts_per_tok": 1}},
    "mpt": {"grouped, clipped": {**_UNTIED, "attn_config": {"clip_qkv": 4.0}}, "untied": _UNTIED},
    "nemotron": {"all heads": {"num_key_value_heads": 4}},
    "olmo": {"clipped": {"clip_qkv": 2.0}},
    "olmo3": {"no window": {"layer_types": ["full_attention"] * 4}},
    "opt": {"post-norm, projected": {"word_embed_proj_dim": 32, "do_layer_norm_before": False}, "untied": _UNTIED},
    "phi": {"query-key norm": {"qk_layernorm": True}, "grouped": {"num_key_value_heads": 2}},
    "phi3": {
        "window": {"sliding_window": WINDOW},
        "longrope": {**_rope("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8), "original_max_position_embeddings": 128},
    },
    "qwen2": {"window from block 2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, "tied": _TIED},
    "qwen2_moe": {"every second sparse": {"decoder_sparse_step": 2}},
    "qwen3": {"window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, "tied": _TIED},
    "qwen3_moe": {"one dense block": {"mlp_only_layers": [1]}, "normed router": {"norm_topk_prob": True}},
    "smollm3": {"no rope in some": {"no_rope_layer_interval": 2}},
    "stablelm": {"parallel, query-key norm": {"use_parallel_residual": True, "qk_layernorm": True}},
    "starcoder2": {"window": {"sliding_window": WINDOW}, "tied": _TIED},
}  # fmt: skip
"""Model type -> its further forms: name -> what is different in it."""


def all_configurations() -> dict[str, Callable[[], Any]]:
    """Every configuration by name, in the order in which they are run: each type with its forms, then those of the tests."""
    found: dict[str, Callable[[], Any]] = {}
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found[kind] = partial(shrunk, kind)
        for form, changes in VARIANTS.get(kind, {}).items():
            found[f"{kind}: {form}"] = partial(shrunk, kind, changes)
    for name, make in sorted(FAMILIES.items()):
        found[f"tests: {name}"] = make
    return found
