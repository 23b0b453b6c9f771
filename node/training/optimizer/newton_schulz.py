"""Newton-Schulz iteration: the nearest orthogonal matrix, by matrix products.

The singular values of the result lie between about 0.7 and 1.2, not exactly at 1: the coefficients are chosen for speed, and
training does not mind. In float32 here, not bfloat16 as in the source: CPUs are no faster in bfloat16, and the update is more
exact.
Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: the quintic that raises small singular values fastest."""

NUM_STEPS = 5
EPS = 1e-7
"""A matrix of a smaller norm is divided by this: a zero matrix stays zero."""

MAX_ENTRY = 2.0
"""Larger than any entry of a result: an entry is at most the largest singular value."""

PARALLEL_VALUES = 1 << 24
"""Values of fused experts that are computed at once, so that temporaries stay below about 200 MiB."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """[out, in] or [experts, out, in], float32 -> the same shape: U V^T of each matrix U S V^T, nearly. Not bit-equal over machines."""
    if matrices.dim() == 2:
        return _orthogonalize(matrices)
    num_parallel = max(1, PARALLEL_VALUES // max(1, matrices[0].numel()))
    return torch.cat([_orthogonalize(part) for part in matrices.split(num_parallel)])


def _orthogonalize(matrices: Tensor) -> Tensor:
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the square below has the shorter side
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    result: Tensor = x.mT if is_tall else x
    return result.contiguous()
