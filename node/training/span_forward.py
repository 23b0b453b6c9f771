"""Some blocks of a stage, as a function of hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from node.engines.selftest import small_windows
from node.training import documents
from node.training.compute_format import Compute, computing_in
from node.training.module_state import ModuleState
from protocols.errors import BadRequestError
from protocols.ids import Span
from swarm.models.parts import SpanParts
from swarm.models.span import SpanModule


class SpanForward:
    """hidden [B, T, H], positions [B, T] or None -> [B, T, H]; forwards that ran before have no effect."""

    def __init__(self, module: SpanModule, compute: Compute = "float32") -> None:
        self._module, self._state, self._compute = module, ModuleState(module), compute

    def __call__(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None and not self._module.takes_positions:
            raise BadRequestError("these blocks count positions by themselves")
        try:
            with computing_in(self._compute, hidden.device):
                output: Tensor = self._module(hidden, position_ids=positions)
        finally:
            self._state.restore()
        return output.to(hidden.dtype)


def choose_way(parts: SpanParts, span: Span) -> documents.Way:
    """How these blocks compute packed documents: the fastest exact way, with windows so small that the test's documents leave them."""
    module = parts.cut(span)
    values = torch.randn(*documents.test_tokens(), module.hidden_size, generator=torch.Generator().manual_seed(0))
    with small_windows(module):
        return documents.choose_way(SpanForward(module), values.to(module.device, module.dtype))
