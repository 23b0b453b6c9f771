"""Clipping of gradients by unit: factors from sums of squares. Pure.

A global norm needs all units of a model before one may step. By unit, with limit / sqrt(number of units), the norm of the whole
gradient stays below the limit, too, and it cost nothing: validation loss 1.8552 against 1.8543 (research/training.md section 5).
The sum of squares comes from the reducers, computed once for all replicas: sums over long axes may differ between machines.
"""

from __future__ import annotations

import math

from protocols.errors import BadRequestError

EPS = 1e-6
"""Added to the norm, as in `torch.nn.utils.clip_grad_norm_`."""


def clip_factor(sum_of_squares: float, limit: float, num_units: int) -> float:
    """What a unit's mean gradient is multiplied by: at most 1, so that its norm is at most limit / sqrt(num_units).

    sum_of_squares: of the mean gradient, in float64; limit: of the whole model's gradient, 0 = no clipping; num_units: of the whole model,
    each block one, embedding and head one. BadRequestError for a sum that is negative, infinite or no number.
    """
    if not 0 <= sum_of_squares < math.inf:
        raise BadRequestError(f"a sum of squares is finite and not negative, got {sum_of_squares}: the gradient is poisoned")
    if limit == 0:
        return 1.0
    return min(1.0, limit / math.sqrt(num_units) / (math.sqrt(sum_of_squares) + EPS))


def mean_scale(sum_of_squares: float, num_targets: int, limit: float, num_units: int) -> float:
    """What a unit's *summed* gradient is multiplied by: the mean over target tokens, and clipping, in one rounding.

    sum_of_squares: of the summed gradient, over num_targets tokens; the rest as in `clip_factor`. 0 tokens: 0, as the sum is.
    """
    if not num_targets:
        return 0.0
    return clip_factor(sum_of_squares / num_targets / num_targets, limit, num_units) / num_targets
