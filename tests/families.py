"""Tiny random checkpoints, one per family.

They are real directories in Hugging Face form, made in a moment, with a seed.

Weights are drawn with a standard deviation of 0.2: with the usual 0.02 every model repeats one token, and tests show nothing.
For the same reason some families are untied here, whose tied head would only echo the last token (gemma, falcon, bloom).
`FAMILIES[name]` makes a config; `make_checkpoint(name, directory)` writes config.json and safetensors, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

SEED = 0
WINDOW = 6
"""Tokens of the sliding windows below: small enough to matter in a short test."""

_TOKENS: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
_BASE: dict[str, Any] = dict(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    **_TOKENS,
)
_NO_GROUPS = {key: value for key, value in _BASE.items() if key != "num_key_value_heads"}
_MLA: dict[str, Any] = dict(kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
_MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONV = ["conv", "full_attention", "conv", "full_attention", "conv"]
_EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
_LOCAL_EXPERTS: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=2)
_LINEAR_HEADS: dict[str, Any] = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16
)
_GPT2: dict[str, Any] = dict(vocab_size=256, n_embd=64, n_layer=5, n_head=4, n_positions=256, **_TOKENS)
_FALCON: dict[str, Any] = dict(vocab_size=256, hidden_size=64, num_hidden_layers=5, num_attention_heads=4,
                               tie_word_embeddings=False, **_TOKENS)  # fmt: skip


def _with(**changes: Any) -> dict[str, Any]:
    return {**_BASE, **changes}


LISTED: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaConfig(**_BASE),
    "mistral": lambda: T.MistralConfig(**_with(head_dim=16, sliding_window=WINDOW)),
    "mixtral": lambda: T.MixtralConfig(**_with(**_LOCAL_EXPERTS)),
    "qwen2": lambda: T.Qwen2Config(
        **_with(tie_word_embeddings=True, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    ),
    "qwen3": lambda: T.Qwen3Config(**_with(head_dim=16)),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(**_with(**_EXPERTS, head_dim=16, mlp_only_layers=[1])),
    "gemma2": lambda: T.Gemma2Config(
        **_with(tie_word_embeddings=False, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16)
    ),
    "gemma3_text": lambda: T.Gemma3TextConfig(
        **_with(tie_word_embeddings=False, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16, layer_types=_MIXED)
    ),
    "phi3": lambda: T.Phi3Config(**_BASE),
    "gpt2": lambda: T.GPT2Config(**_GPT2),
    "gpt_neox": lambda: T.GPTNeoXConfig(**_NO_GROUPS),
    "falcon_alibi": lambda: T.FalconConfig(**_FALCON, alibi=True, multi_query=True, new_decoder_architecture=False),
    "falcon_rotary": lambda: T.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "bloom": lambda: T.BloomConfig(vocab_size=256, hidden_size=64, n_layer=5, n_head=4, tie_word_embeddings=False, **_TOKENS),
    "opt": lambda: T.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=64,
        **_TOKENS,
    ),
    "olmo2": lambda: T.Olmo2Config(**_BASE),
    "deepseek_v3": lambda: T.DeepseekV3Config(
        **_with(
            num_key_value_heads=4,
            **_MLA,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            moe_intermediate_size=48,
            first_k_dense_replace=1,
        )
    ),
    "gpt_oss": lambda: T.GptOssConfig(**_with(head_dim=16, **_LOCAL_EXPERTS, sliding_window=WINDOW)),
}
"""The families that the project promises to serve exactly."""

OTHERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: T.BertConfig(**_NO_GROUPS, is_decoder=True),
    "openai_gpt": lambda: T.OpenAIGPTConfig(**{**_GPT2, "n_positions": 1024}),
    "llama3_rope": lambda: T.LlamaConfig(
        **_with(
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=500000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        )
    ),
    "llama4_text": lambda: T.Llama4TextConfig(
        **_with(
            head_dim=16,
            **_LOCAL_EXPERTS,
            intermediate_size_mlp=96,
            interleave_moe_layer_step=2,
            attention_chunk_size=16,
            no_rope_layer_interval=3,
        )
    ),
    "gpt_neo": lambda: T.GPTNeoConfig(
        vocab_size=256,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        max_position_embeddings=256,
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
        **_TOKENS,
    ),
    "gptj": lambda: T.GPTJConfig(**_GPT2, rotary_dim=8),
    "gpt_bigcode": lambda: T.GPTBigCodeConfig(**_GPT2),
    "mpt": lambda: T.MptConfig(vocab_size=256, d_model=64, n_layers=5, n_heads=4, max_seq_len=256, expansion_ratio=2),
    "opt_projected": lambda: T.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
        **_TOKENS,
    ),
    "phi": lambda: T.PhiConfig(**_BASE),
    "gemma": lambda: T.GemmaConfig(**_with(head_dim=16)),
    "stablelm": lambda: T.StableLmConfig(**_BASE),
    "starcoder2": lambda: T.Starcoder2Config(**_with(sliding_window=WINDOW)),
    "cohere2": lambda: T.Cohere2Config(**_with(sliding_window=WINDOW)),
    "granite": lambda: T.GraniteConfig(**_with(embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=2.0)),
    "glm4_moe": lambda: T.Glm4MoeConfig(
        **_with(
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=48,
            first_k_dense_replace=1,
            head_dim=16,
        )
    ),
    "olmoe": lambda: T.OlmoeConfig(**_with(num_experts=4, num_experts_per_tok=2)),
    "qwen3_next": lambda: T.Qwen3NextConfig(
        **_with(**_EXPERTS, **_LINEAR_HEADS, head_dim=16, shared_expert_intermediate_size=48, layer_types=_LINEAR)
    ),
    "lfm2": lambda: T.Lfm2Config(**_with(layer_types=_CONV, block_ff_dim=96, block_auto_adjust_ff_dim=False)),
    "falcon_h1": lambda: T.FalconH1Config(
        **_with(
            mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16, head_dim=16
        )
    ),
    "gemma4_text": lambda: T.Gemma4TextConfig(
        **_with(
            head_dim=16,
            sliding_window=WINDOW,
            layer_types=_MIXED,
            hidden_size_per_layer_input=0,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=256,
        )
    ),
    "mamba2": lambda: T.Mamba2Config(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=5,
        state_size=8,
        num_heads=8,
        head_dim=16,
        n_groups=2,
        chunk_size=16,
        **_TOKENS,
    ),
    "mamba": lambda: T.MambaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=5, state_size=8, **_TOKENS),
    "jamba": lambda: T.JambaConfig(
        **_with(
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
}
"""Families beyond the list: served by whichever engine proves exact, or refused at load."""

REFUSED: dict[str, Callable[[], Any]] = {
    "gemma4_per_layer": lambda: T.Gemma4TextConfig(
        **_with(
            head_dim=16,
            sliding_window=WINDOW,
            layer_types=_MIXED,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=256,
        )
    ),
    "deepseek_v4": lambda: T.DeepseekV4Config(
        **_with(
            num_key_value_heads=1,
            head_dim=16,
            q_lora_rank=16,
            o_lora_rank=16,
            o_groups=2,
            qk_rope_head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            sliding_window=WINDOW,
        )
    ),
}
"""Families whose blocks are no chain."""

FAMILIES: dict[str, Callable[[], Any]] = {**LISTED, **OTHERS, **REFUSED}


def make_checkpoint(name: str, directory: Path, shard: str | None = None, *, seed: int = SEED) -> Path:
    """Write a checkpoint of family `name` into `directory` and return it. `shard`: largest shard, as "60KB"; None = one file."""
    return write_checkpoint(FAMILIES[name](), directory, shard, seed=seed)


def write_checkpoint(config: Any, directory: Path, shard: str | None = None, *, seed: int = SEED) -> Path:
    """The same of any config."""
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (cls[0] if isinstance(cls, list | tuple) else cls)._from_config(config, dtype=torch.float32)
        draw_weights(model)
    T.logging.disable_progress_bar()
    model.save_pretrained(directory, max_shard_size=shard or "5GB")
    return Path(directory)


class Checkpoints:
    """Checkpoints made on first use below one directory: `checkpoints("llama")`, `checkpoints("llama", shard="60KB")`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str, shard: str | None = None) -> Path:
        directory = self._root / f"{name}-{shard}"
        return directory if directory.exists() else make_checkpoint(name, directory, shard)


@torch.no_grad()
def draw_weights(model: torch.nn.Module, std: float = 0.2) -> None:
    """Matrices of standard deviation `std`; vectors (norms, biases, decay rates) moved a little from their own start."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, std)
        elif parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def add_byte_tokenizer(directory: Path) -> None:
    """A tokenizer whose 256 tokens are the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    T.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
