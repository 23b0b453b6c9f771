"""Linear kernels: a few tokens times a matrix, the fastest by measurement.

All read the matrix once, and none comes near what memory or arithmetic allow. No rule holds on all machines: MKL's kernel takes as long
for 4 to 16 tokens as for 30; with both sides transposed, or by oneDNN, it takes half to two thirds of that, but more for 2 or 3 tokens
(docs/log.md).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LinearKernel = Callable[..., Tensor]
"""(tokens [..., I], weight [O, I], bias [O] or None) -> [..., O]: as `F.linear`, but for the last bits of its dtype."""

GAIN = 0.9
"""Largest share of `F.linear`'s time, in (0, 1], at which another kernel replaces it."""

_ENOUGH_BYTES = 256 << 20
"""Bytes of matrices of one shape that a measurement reads, more than any cache; at most one matrix more."""


def transposed(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A kernel that transposes both sides; its result lies in memory as [O, ...]."""
    flat = tokens.reshape(-1, tokens.shape[-1]).t()
    made = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
    output: Tensor = made.t().unflatten(0, tokens.shape[:-1])
    return output


def onednn(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The operator that torch's compiler uses for linear layers. It is not public: AttributeError if this torch has none."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(tokens, weight, bias, "none", [], "")
    return output


KERNELS: tuple[LinearKernel, ...] = (F.linear, transposed, onednn)
"""The model's own comes first."""


def fastest(weights: Sequence[Tensor], count: int, kernels: Sequence[LinearKernel] = KERNELS) -> LinearKernel:
    """The kernel to use for `count` tokens and these matrices of one shape, [O, I] each. `F.linear` on a device that is not the CPU.

    kernels: to choose from, `F.linear` first.

    Each kernel multiplies each measured matrix once; the median time counts. Consecutive calls use different matrices, because in a
    forward a matrix is not in a cache either.
    """
    if weights[0].device.type != "cpu" or count == 1:
        return F.linear
    tokens = torch.ones(
        1, count, weights[0].shape[1], dtype=weights[0].dtype
    )  # not random: that would change torch's global generator, and with it a text being sampled
    spent_s: dict[LinearKernel, list[float]] = {kernel: [] for kernel in kernels}
    for shift in range(len(kernels)):
        for index, weight in enumerate(_some(weights)):
            kernel = kernels[(index + shift) % len(kernels)]
            spent_s[kernel].append(_seconds(kernel, tokens, weight))
    cost_s = {kernel: statistics.median(times) for kernel, times in spent_s.items()}
    quick = min(kernels, key=cost_s.__getitem__)
    return quick if cost_s[quick] <= GAIN * cost_s[F.linear] else F.linear


def _some(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return weights[: 1 + _ENOUGH_BYTES // weights[0].nbytes]


def _seconds(kernel: LinearKernel, tokens: Tensor, weight: Tensor) -> float:
    """Seconds of one call; infinite if this torch or this dtype does not support the kernel."""
    started = time.perf_counter()
    try:
        kernel(tokens, weight)
    except (RuntimeError, AttributeError):
        return float("inf")
    return time.perf_counter() - started
