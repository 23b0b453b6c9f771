"""Arithmetic that gives the same bits on every machine.

torch's combined operations (`addcmul`, `addcdiv`, `lerp`, `add` with `alpha`, foreach, fused) use a fused multiply-add if the CPU
has one, so they round once or twice. Here every operation is one torch operation, rounded once as IEEE 754 demands: `*`, `+`, `-`,
tensor / tensor, `sqrt`. Two more rules: a tensor is never divided by a number (CUDA multiplies by a reciprocal instead), and
numbers are made of Python floats with `+ - * /` alone, since `pow` and `cos` of two C libraries may differ in the last bit.
Source: research/training.md section 4: with `torch.optim.AdamW`, AVX2 and no AVX gave different bits after 20 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

CPU_CHUNK_VALUES = 1 << 16
"""Values that a CPU computes together: its temporaries of 256 KiB stay in the cache (measured: 2.6 times as fast as 1 << 20)."""

CHUNK_VALUES = 1 << 22
"""Values that another device computes together: a temporary takes 16 MiB, and starting an operation costs little against it."""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same consecutive values of each tensor, as flat views; what is written into a view is written into its tensor.

    Tensors of one shape on one device; all contiguous (assertion), since others have no flat view.
    """
    assert all(tensor.is_contiguous() and tensor.shape == tensors[0].shape for tensor in tensors)
    num_values = CPU_CHUNK_VALUES if tensors[0].device.type == "cpu" else CHUNK_VALUES
    return zip(*(tensor.view(-1).split(num_values) for tensor in tensors), strict=True)


def moving_average(average: Tensor, value: Tensor, decay: float) -> None:
    """average = average * decay + value * (1 - decay), in place."""
    average.mul_(decay).add_(value * (1 - decay))


def power(base: float, exponent: int) -> float:
    """base ** exponent by repeated squaring, for exponent >= 0."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def half_cosine(share: float) -> float:
    """(1 + cos(pi * share)) / 2 for share in [0, 1], within 1e-15: from 1 down to 0."""
    if share > 0.5:
        return 1.0 - half_cosine(1.0 - share)
    square = (math.pi * share) * (math.pi * share)
    term = total = 1.0
    for n in range(1, 15):  # the cosine's Taylor series; term 15 is below 1e-26 for pi / 2
        term *= -square / ((2 * n - 1) * (2 * n))
        total += term
    return (1.0 + total) / 2.0
