"""Kinds of parameters: which get weight decay, and which Muon updates. Pure.

Told by name and shape, the same for every family:
- weight decay: tensors with two or more dimensions that are weights of a linear map, convolution or embedding (the rule of nanoGPT
  and Megatron-LM: embeddings too, since a tied one is also the head; no biases, no norms). What else has two dimensions, as mamba's
  `A_log` or the biases of fused experts, gets none: no name of those ends in `weight`, and it is no matrix of an expert.
- Muon: of these, the matrices of blocks: [out, in], and fused experts [experts, out, in]. Not those of embedding and head (all of
  Ends), nor tables of embeddings in a block, nor convolutions. Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.units import Blocks, Unit


def gets_weight_decay(name: str, shape: Sequence[int]) -> bool:
    """Is it a weight that multiplies (matrix, convolution, table of embeddings)? name: the parameter's, by any prefix."""
    return sum(dim > 1 for dim in shape) > 1 and (name.endswith("weight") or _is_expert_matrix(name))


def is_matrix(name: str, shape: Sequence[int], unit: Unit) -> bool:
    """Does Muon update it? A fused tensor of experts is one matrix for each index of its first dimension."""
    is_flat = len(shape) == 2 or (len(shape) == 3 and "experts" in name.split("."))
    is_linear = gets_weight_decay(name, shape) and not any(word in name for word in ("embed", "bias", "norm"))
    return isinstance(unit, Blocks) and is_flat and min(shape[-2:]) > 1 and is_linear


def _is_expert_matrix(name: str) -> bool:
    """Fused experts are bare parameters, as `mlp.experts.gate_up_proj`; their biases are `mlp.experts.gate_up_proj_bias`."""
    parts = name.split(".")
    return "experts" in parts[:-1] and "bias" not in parts[-1] and "scale" not in parts[-1]
