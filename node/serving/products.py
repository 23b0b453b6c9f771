"""Ways to multiply a few tokens by a matrix, and which of them is the faster one here: measured, since no rule holds for all machines.

Both read the matrix once, and are far from what memory or arithmetic allow. MKL takes 1.3 to 1.8 times as long for 8 to 16 tokens as for
the same product with both sides transposed, and less for 17 (docs/log.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[..., Tensor]
"""(tokens [..., I], weight [O, I], bias [O] or None) -> [..., O]."""

GAIN = 0.9
"""Another way than a model's own is taken where it needs at most so much of the time."""

_ROUNDS = 3
_ENOUGH_BYTES = 8 << 20
"""Matrices of one shape that are tried: more than a core's own cache holds."""


def transposed(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, to the last bits of its dtype; the result lies in memory as [O, ...]."""
    flat = tokens.reshape(-1, tokens.shape[-1]).t()
    made = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
    product: Tensor = made.t().unflatten(0, tokens.shape[:-1])
    return product


def fastest(weights: Sequence[Tensor], count: int) -> Product:
    """For `count` tokens and matrices of one shape that are used one after the other. Takes as long as some of these products do."""
    if weights[0].device.type != "cpu" or count == 1:
        return F.linear
    tried = _some(weights)
    tokens = torch.ones(1, count, weights[0].shape[1], dtype=weights[0].dtype)  # no random numbers: somebody may be sampling
    own, other = [], []
    for _ in range(_ROUNDS):
        own.append(_seconds(F.linear, tokens, tried))
        other.append(_seconds(transposed, tokens, tried))
    return transposed if min(other) <= GAIN * min(own) else F.linear


def _some(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return weights[: 1 + _ENOUGH_BYTES // weights[0].nbytes]


def _seconds(product: Product, tokens: Tensor, weights: Sequence[Tensor]) -> float:
    started = time.perf_counter()
    for weight in weights:
        product(tokens, weight)
    return time.perf_counter() - started
