"""GGUF files of a tiny model, as llama.cpp's converter would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from tokenizers import pre_tokenizers

from tests.families import draw_weights

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def make_model(num_tokens: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=num_tokens, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            draw_weights(model)
    return model.eval()


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE, as GGUF lists them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "a t", "Ġ the"]
    return ["<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in merges)], merges


def write_gguf(path: Path, model: Any, architecture: str = "llama", num_blocks: int = 0, width: int = 0) -> Path:
    """The model as llama.cpp's converter would write it, in float32. num_blocks, width: what the file claims instead of the truth."""
    tokens, merges = vocabulary()
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width or config.hidden_size)
    writer.add_block_count(num_blocks or config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(*_as_gguf(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_gguf(name: str, tensor: torch.Tensor, config: Any) -> tuple[str, Any]:
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in ends:
        return ends[name], tensor.numpy()
    block, _, rest = name.removeprefix("model.layers.").partition(".")
    kind = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(kind)
    if heads:  # llama.cpp rotates neighbours, transformers the two halves of a head
        tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    return f"blk.{block}.{NAMES[kind]}.weight", tensor.contiguous().numpy()


def make_directory(folder: Path, architecture: str = "llama") -> tuple[Path, Any]:
    """A directory with one file, and the model that it was made from."""
    folder.mkdir()
    model = make_model(len(vocabulary()[0]))
    write_gguf(folder / "tiny.gguf", model, architecture)
    return folder, model
