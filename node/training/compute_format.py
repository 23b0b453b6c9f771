"""In which number format a stage multiplies matrices.

Parameters, residual stream, loss, gradients of parameters, sums and the optimizer are float32 in any case. In bfloat16, torch's autocast
rounds the inputs of each matrix product and of attention, as is usual for training on GPUs.
"""

from __future__ import annotations

from typing import Literal

import torch

Compute = Literal["float32", "bfloat16"]


def computing_in(compute: Compute, device: torch.device) -> torch.autocast:
    """A context for a forward. Its backward needs none: each operation has kept what it was given."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute == "bfloat16")
