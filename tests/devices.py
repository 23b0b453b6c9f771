"""The device that tests of engines and ends compute on.

MURMURATION_TEST_DEVICE names it; else it is the CPU. References stay on the CPU, in float32, so a device is compared with another kind of
arithmetic. `scripts/gpu_check` sets it to cuda.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("MURMURATION_TEST_DEVICE", "cpu"))


def feed(engine: Any, items: Sequence[tuple[Any, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
    """A step of the engine with tensors of the CPU: they go to its device, and its output comes back."""
    output: Tensor = engine.step(items, hidden.to(DEVICE), None if positions is None else positions.to(DEVICE))
    return output.cpu()
