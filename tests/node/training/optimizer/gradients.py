"""Parameters and gradients of a block: the same bits on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.devices import DEVICE

SHAPES = {
    "3.attn.q_proj.weight": (48, 32),
    "3.mlp.experts.gate_up_proj": (3, 24, 40),
    "3.mlp.experts.gate_up_proj_bias": (3, 24),
    "3.norm.weight": (32,),
    "3.attn.q_proj.bias": (48,),
}


def values(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Multiples of 1/1024 in (-1, 1), times the scale: `torch.randn` gives other bits on another CPU."""
    drawn = np.random.default_rng(seed).integers(-1023, 1024, shape, dtype=np.int32)
    return (torch.from_numpy(drawn).float() / 1024 * scale).to(DEVICE)


def parameters() -> dict[str, Tensor]:
    return {name: values(number, shape) for number, (name, shape) in enumerate(SHAPES.items())}


def gradients(version: int) -> dict[str, Tensor]:
    """Sizes from 1e-4 to 1: moments and their bias correction matter."""
    scale = 10.0 ** -(version % 5)
    return {name: values(1_000 * (version + 1) + number, shape, scale) for number, (name, shape) in enumerate(SHAPES.items())}
