"""A Llama of about so many parameters: what `size = "3M"` computes.

The rule, the same on every machine (integers and one comparison of ratios, so a run file with a size names one config):
- vocabulary V: that of the tokenizer, rounded up to a multiple of 64; without a tokenizer the power of two nearest to 2 * sqrt(size)
  (by ratio), from 512 to 131,072: 4,096 for 3M, 16,384 for 124M;
- embedding and head are tied; heads have 32 values, from a width of 512 on 64; each query head has its own key and value;
- width H: a multiple of 64; the MLP has 8/3 * H, rounded up to a multiple of 64; the depth, at least 2, is the one that comes nearest to
  the size;
- of all widths, the one whose width / depth is nearest to 64 (by ratio) among those within 10 % of the size; if there is none,
  the one that comes nearest to the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from protocols.errors import ConfigError

MULTIPLE: Final = 64
"""Of widths and vocabularies: what matrix kernels like."""

ASPECT: Final = 64
TOLERANCE: Final = 0.1
MAX_WIDTH: Final = 1 << 15
MAX_DEPTH: Final = 512
MIN_DEPTH: Final = 2
"""So that two peers can share it."""
MIN_VOCABULARY, MAX_VOCABULARY = 512, 1 << 17


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes. num_parameters counts a tied head once."""

    vocabulary: int
    width: int
    depth: int

    @property
    def mlp_width(self) -> int:
        return _rounded_up(-(-8 * self.width // 3))

    @property
    def num_parameters(self) -> int:
        block = 4 * self.width**2 + 3 * self.width * self.mlp_width + 2 * self.width
        return self.vocabulary * self.width + self.depth * block + self.width


def shape_of(size: int, num_ids: int | None = None) -> Shape:
    """The sizes for about `size` parameters. num_ids: of the tokenizer; None = the vocabulary is computed, too.

    ConfigError if a vocabulary alone takes more than half of the parameters at the smallest width: the size is too small for it.
    """
    vocabulary = default_vocabulary(size) if num_ids is None else _rounded_up(num_ids)
    if 2 * vocabulary * MULTIPLE > size:
        raise ConfigError(
            f"model.size: {size} parameters are too few for a vocabulary of {vocabulary}: its table has {vocabulary * MULTIPLE} at the "
            f"smallest width; give at least {2 * vocabulary * MULTIPLE}, or a smaller tokenizer"
        )
    found = [_deepened(size, vocabulary, width) for width in range(MULTIPLE, MAX_WIDTH + 1, MULTIPLE)]
    near = [shape for shape in found if _miss(shape, size) <= TOLERANCE]
    if not near:
        return min(found, key=lambda shape: _miss(shape, size))
    return min(near, key=lambda shape: max(shape.width / shape.depth / ASPECT, ASPECT * shape.depth / shape.width))


def default_vocabulary(size: int) -> int:
    """The power of two nearest, by ratio, to 2 * sqrt(size), within bounds."""
    power = MIN_VOCABULARY
    while power < MAX_VOCABULARY and power**2 * 2 < 4 * size:  # the next power is nearer: power * sqrt(2) < 2 * sqrt(size)
        power *= 2
    return power


def llama_config(shape: Shape, *, context_tokens: int, end_id: int | None = None) -> dict[str, Any]:
    """The `config.json` of a Llama. context_tokens: its longest sequence; end_id: the token that ends a document, if there is one."""
    head = 32 if shape.width < 512 else 64
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.width // head,
        "num_key_value_heads": shape.width // head,
        "head_dim": head,
        "max_position_embeddings": context_tokens,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }


def _deepened(size: int, vocabulary: int, width: int) -> Shape:
    one, two = (Shape(vocabulary, width, depth).num_parameters for depth in (1, 2))
    block = two - one
    return Shape(vocabulary, width, min(MAX_DEPTH, max(MIN_DEPTH, 1 + (2 * (size - one) + block) // (2 * block))))


def _miss(shape: Shape, size: int) -> float:
    return abs(shape.num_parameters - size) / size


def _rounded_up(number: int) -> int:
    return -(-number // MULTIPLE) * MULTIPLE
