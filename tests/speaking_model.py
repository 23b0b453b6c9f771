"""A checkpoint that says what a test decides.

Its layers add nothing, so each token follows from the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.end_to_end.local_swarm import make_llama
from tests.families import add_byte_tokenizer


def make_speaker(
    folder: Path,
    template: str,
    says: Mapping[str, str],
    special: Sequence[str] = (),
    ends: Sequence[str] = ("<end>",),
    or_says: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """A checkpoint that says what `says` says, token by token. ends: tokens that end an answer; the first follows what nothing follows.
    or_says: what it says instead, if a mask forbids that."""
    path = make_llama(folder)
    add_byte_tokenizer(path)
    (path / "chat_template.jinja").write_text(template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    words = dict.fromkeys(word for pair in [*says.items(), *or_says.items()] for word in pair if len(word) > 1)
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words if word not in special])
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": list(special)})
    tokenizer.save_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in [":", ">", *words, *ends]}
    follows = {ids[before]: ids[after] for before, after in says.items()}
    follows |= {ids[word]: ids[ends[0]] for word in words if word not in says}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        seen = torch.randn(model.get_input_embeddings().weight.shape, generator=generator)
        model.get_input_embeddings().weight.copy_(seen)
        head = torch.zeros_like(seen)
        for before, after in follows.items():
            head[after] += seen[before]
        for before, after in or_says.items():
            head[ids[after]] += seen[ids[before]] / 2
        model.lm_head.weight.copy_(head)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
    model.config.eos_token_id = model.generation_config.eos_token_id = [ids[end] for end in ends]
    model.save_pretrained(path)
    return path
