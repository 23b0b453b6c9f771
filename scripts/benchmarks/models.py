"""The models of the benchmark.

They are two random Llamas, one that is nearly all overhead, one of 110 million parameters; and a real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a Llama is made of."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    is_tied: bool
    """Embedding and head are one matrix."""
    deviation: float = 0.0
    """Of the random weights: large enough that greedy decoding does not repeat one token for ever."""
    dtype: str = "float32"
    place: Path | None = None
    """The checkpoint, if it is not made here."""

    @property
    def value_bytes(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.dtype]

    @property
    def block_values(self) -> int:
        """Parameters of all blocks."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        return self.blocks * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden)

    @property
    def block_bytes(self) -> int:
        """All blocks' weights."""
        return self.value_bytes * self.block_values

    @property
    def ends_bytes(self) -> int:
        """Embedding and head, which may be one matrix, and the final norm."""
        return self.value_bytes * ((1 if self.is_tied else 2) * self.vocab * self.hidden + self.hidden)

    def __str__(self) -> str:
        return f"{self.name} ({self.blocks} blocks, hidden {self.hidden}, vocabulary {self.vocab}, {self.dtype})"


TINY = Shape(
    name="tiny-llama", vocab=256, hidden=64, intermediate=128, blocks=4, heads=4, kv_heads=2, is_tied=False, deviation=0.2
)
SMALL = Shape(
    name="llama-110m",
    vocab=32_000,
    hidden=768,
    intermediate=2_048,
    blocks=12,
    heads=12,
    kv_heads=12,
    is_tied=True,
    deviation=0.02,
)
"""The blocks have 85 million parameters, embedding and head (tied) 25 million."""


def real() -> Shape | None:
    """SmolLM2-135M-Instruct, if `scripts/real_model` has fetched it."""
    import real_model

    place = real_model.found()
    return place and Shape(
        name=real_model.NAME, vocab=49_152, hidden=576, intermediate=1_536, blocks=real_model.NUM_BLOCKS, heads=9, kv_heads=3,
        is_tied=True, place=place,
    )  # fmt: skip


def checkpoint(shape: Shape, folder: Path, device: str = "cpu") -> Path:
    """A checkpoint directory of that shape in `folder`, made where it is not there yet. device: where its weights are drawn."""
    if shape.place is not None:
        return shape.place
    directory = folder / shape.name
    if not (directory / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=4_096,
            initializer_range=shape.deviation,
            tie_word_embeddings=shape.is_tied,
            bos_token_id=1,
            eos_token_id=None,
        )
        with torch.device(device):
            model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, shape.dtype))
        model.save_pretrained(directory)
    return directory


def local(path: Path) -> Any:
    """transformers' own model, the reference."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def prompt(shape: Shape, tokens: int, rows: int = 1) -> Any:
    """Random token ids [batch, tokens], the same in every run."""
    import torch

    return torch.randint(3, shape.vocab, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
