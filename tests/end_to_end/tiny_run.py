"""A tiny Llama's run; a version takes less than a second."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

from node.training.spec.tokenizer_training import train_tokenizer

VOCABULARY = 300
NUM_BLOCKS = 4

_TEXT = """
name = "{name}"
seed = 7
[model]
config = "config.json"
tokenizer = "tokenizer.json"
[data]
train = ["text.txt"]
validation = ["held-out.txt"]
sequence_tokens = 32
[training]
steps = {steps}
batch_tokens = {batch_tokens}
micro_batch_sequences = 4
[optimizer]
lr = 3e-3
[schedule]
warmup_steps = 1
[checkpoint]
every_steps = {checkpoint_every}
[serving]
every_versions = {serve_every}
"""


def write_tiny_run(
    folder: Path, *, name: str = "tiny", steps: int = 3, batch_tokens: int = 512, checkpoint_every: int = 0, serve_every: int = 0
) -> Path:
    """`run.toml` with its config, text and tokenizer in `folder`, which is made. Micro-batches have 128 tokens."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text(topics["assignment"])
    (folder / "held-out.txt").write_text(topics["assert"])
    train_tokenizer([topics["assignment"]], VOCABULARY, folder)
    values = {"name": name, "steps": steps, "batch_tokens": batch_tokens}
    values |= {"checkpoint_every": checkpoint_every, "serve_every": serve_every}
    (folder / "run.toml").write_text(_TEXT.format(**values))
    return folder / "run.toml"
