"""How large the checks are, on a card and on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.models import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of every section."""

    shape: Shape
    copied_bytes: int
    """Of the buffer that is copied: several times the card's cache."""
    matrix: int
    """Size of the square matrices that are multiplied."""
    sessions: tuple[int, ...]
    """How many decode at once."""
    prompt_tokens: int
    """Of each session, before it decodes."""
    new_tokens: int
    """Decoded by each session in one repeat."""
    prefill_tokens: int
    train_sequences: int
    """Of one micro-batch in training."""
    train_tokens: int
    """Of each of its sequences."""
    repeats: int
    families: tuple[str, ...] | None
    """Whose tests are run; None = the tests of all."""


FULL = Sizes(
    shape=Shape(
        name="llama-8b-blocks", vocab=1_024, hidden=4_096, intermediate=14_336, blocks=6, heads=32, kv_heads=8, is_tied=True,
        deviation=0.02, dtype="bfloat16",
    ),
    copied_bytes=4 << 30, matrix=8_192, sessions=(1, 8, 32), prompt_tokens=512, new_tokens=48, prefill_tokens=2_048,
    train_sequences=4, train_tokens=2_048, repeats=5, families=None,
)  # fmt: skip
"""Six blocks of the shape of Llama 3 8B: 1.31 billion parameters, 2.6 GB."""

SMALL = Sizes(
    shape=Shape(
        name="llama-small-blocks", vocab=256, hidden=64, intermediate=128, blocks=3, heads=4, kv_heads=2, is_tied=True, deviation=0.2,
        dtype="bfloat16",
    ),
    copied_bytes=8 << 20, matrix=256, sessions=(1, 8, 32), prompt_tokens=24, new_tokens=6, prefill_tokens=128,
    train_sequences=2, train_tokens=32, repeats=1, families=("llama", "bloom", "mamba", "qwen3_next", "gpt_neo", "openai_gpt"),
)  # fmt: skip
"""One family for each engine: packed, paged, token by token, with running states, serial, recomputing."""
