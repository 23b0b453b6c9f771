"""Some blocks of a stage, as a function of hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from node.engines.selftest import small_windows
from node.training import documents
from node.training.module_state import ModuleState
from protocols.errors import BadRequestError
from protocols.ids import Span
from swarm.models.parts import SpanParts
from swarm.models.span import SpanModule


class SpanForward:
    """hidden [B, T, H], positions [B, T] or None -> [B, T, H]; whatever ran before has no effect."""

    def __init__(self, module: SpanModule) -> None:
        self._module, self._state = module, ModuleState(module)

    def __call__(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None and not self._module.takes_positions:
            raise BadRequestError("these blocks count positions by themselves")
        try:
            output: Tensor = self._module(hidden, position_ids=positions)
        finally:
            self._state.restore()
        return output


def choose_way(parts: SpanParts, span: Span) -> documents.Way:
    """How these blocks compute packed documents: the fastest exact way, with windows so small that the test's documents leave them."""
    module = parts.cut(span)
    values = torch.randn(*documents.test_tokens(), module.hidden_size, generator=torch.Generator().manual_seed(0))
    with small_windows(module):
        return documents.choose_way(SpanForward(module), values.to(module.device, module.dtype))
