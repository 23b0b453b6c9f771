"""Ways to multiply a few tokens by a matrix, and which of them is the fastest here: measured, since no rule holds for all machines.

All read the matrix once, and none comes near what memory or arithmetic allow. MKL's kernel takes as long for 4 to 16 tokens as
for 30; with both sides transposed, or by oneDNN, it takes half to two thirds of that, but more for 2 or 3 tokens (docs/log.md).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LinearKernel = Callable[..., Tensor]
"""(tokens [..., I], weight [O, I], bias [O] or None) -> [..., O]: `F.linear`, to the last bits of its dtype."""

GAIN = 0.9
"""Another kernel than a model's own is taken where it needs at most so much of the time."""

_ENOUGH_BYTES = 256 << 20
"""Matrices of one shape that are tried."""


def transposed(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result lies in memory as [O, ...]."""
    flat = tokens.reshape(-1, tokens.shape[-1]).t()
    made = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
    kernel: Tensor = made.t().unflatten(0, tokens.shape[:-1])
    return kernel


def onednn(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The operator that torch's compiler uses for linear layers; it has no public name, so it is tried and never relied on."""
    kernel: Tensor = torch.ops.mkldnn._linear_pointwise.default(tokens, weight, bias, "none", [], "")
    return kernel


KERNELS: tuple[LinearKernel, ...] = (F.linear, transposed, onednn)
"""The model's own comes first."""


def fastest(weights: Sequence[Tensor], count: int) -> LinearKernel:
    """For `count` tokens and matrices of one shape that are used one after the other. Every kernel goes once through all of them.

    Ways take turns, so that no matrix is still in a cache from the kernel before: in a forward it is not, either.
    """
    if weights[0].device.type != "cpu" or count == 1:
        return F.linear
    tokens = torch.ones(1, count, weights[0].shape[1], dtype=weights[0].dtype)  # no random numbers: somebody may be sampling
    spent_s: dict[LinearKernel, list[float]] = {kernel: [] for kernel in KERNELS}
    for turn in range(len(KERNELS)):
        for index, weight in enumerate(_some(weights)):
            kernel = KERNELS[(index + turn) % len(KERNELS)]
            spent_s[kernel].append(_seconds(kernel, tokens, weight))
    cost_s = {kernel: statistics.median(times) for kernel, times in spent_s.items()}
    quick = min(KERNELS, key=cost_s.__getitem__)
    return quick if cost_s[quick] <= GAIN * cost_s[F.linear] else F.linear


def _some(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return weights[: 1 + _ENOUGH_BYTES // weights[0].nbytes]


def _seconds(kernel: LinearKernel, tokens: Tensor, weight: Tensor) -> float:
    """Infinite where this torch or this dtype cannot go that kernel."""
    started = time.perf_counter()
    try:
        kernel(tokens, weight)
    except (RuntimeError, AttributeError):
        return float("inf")
    return time.perf_counter() - started
