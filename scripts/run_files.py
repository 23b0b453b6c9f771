"""Run files of scripts and tests, beside the files that they name.

Fields are given by their names on the command line: {"training.steps": 60}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parent.parent
PROSE = ROOT / "examples" / "prose"

Fields = Mapping[str, object]

TINY: Fields = {
    "name": "tiny", "seed": 7, "model.config": "config.json", "model.tokenizer": "tokenizer.json", "data.train": ["text.txt"],
    "data.validation": ["held-out.txt"], "data.sequence_tokens": 32, "training.steps": 3, "training.batch_tokens": 512,
    "training.micro_batch_sequences": 4, "optimizer.lr": 3e-3, "schedule.warmup_steps": 1, "checkpoint.every_steps": 0,
    "serving.every_versions": 0,
}  # fmt: skip
"""A version takes less than a second; micro-batches have 128 tokens."""

LLAMA: Fields = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def write_run(
    folder: Path, fields: Fields | None = None, *, config: Fields | None = None, texts: Sequence[str] = (topics["assignment"],)
) -> Path:
    """`run.toml` in `folder`, which is made, with its config, text and tokenizer. fields, config: what is not as in TINY and LLAMA."""
    from node.training.spec.tokenizer_training import train_tokenizer

    folder.mkdir(parents=True)
    whole = {**LLAMA, **(config or {})}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "text.txt").write_text("\n\n".join(texts))
    (folder / "held-out.txt").write_text(topics["assert"])
    train_tokenizer(texts, int(str(whole["vocab_size"])), folder)
    return _write(folder, {**TINY, **(fields or {})})


def write_prose_run(folder: Path, fields: Fields) -> Path:
    """The run of examples/prose, with its text and tokenizer, but for these fields."""
    subprocess.run([sys.executable, PROSE / "prepare.py", folder], check=True, stdout=subprocess.DEVNULL)
    (folder / "config.json").write_bytes((PROSE / "config.json").read_bytes())
    return _write(folder, {**dict(_named(tomllib.loads((PROSE / "run.toml").read_text()))), **fields})


def _named(document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{field}", one) for field, one in value.items())
        else:
            yield name, value


def _write(folder: Path, fields: Fields) -> Path:
    """JSON's strings, numbers, truth values and lists are TOML's, too."""
    sections: dict[str, list[str]] = {"": []}
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        sections.setdefault(section, []).append(f"{field} = {json.dumps(value)}\n")
    text = "".join("".join([f"[{name}]\n" if name else "", *lines]) for name, lines in sections.items())
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"
