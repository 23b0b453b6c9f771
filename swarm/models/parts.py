"""Parts of loaded blocks, as modules over the same tensors.

A route may ask a node for fewer blocks than it hosts. Each part is what `load_span` of those blocks would give, but no tensor is
copied: only the modules around them are, since their cache indices and configs differ.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch

from protocols.ids import Span
from swarm.models.skeleton import renumber_caches, shorten
from swarm.models.span import SpanModule


class SpanParts:
    """Cuts parts out of blocks `span`. It keeps the modules as they were loaded, with the config of the whole model."""

    def __init__(self, model: Any, span: Span, dtype: torch.dtype) -> None:
        """model: pruned to `span` and loaded, but not shortened yet; it stays the caller's."""
        self.span = span
        self._model, self._dtype = _with_same_tensors(model), dtype

    def cut(self, part: Span) -> SpanModule:
        """Blocks `part`, which lie within the span. From any thread."""
        assert self.span.start <= part.start and part.stop <= self.span.stop
        model = _with_same_tensors(self._model)
        location = model.swarm_location
        start = part.start - self.span.start
        blocks = location.blocks[start : start + len(part)]
        setattr(location.owner, location.attribute, blocks)
        renumber_caches(blocks, start)
        shorten(model, part.start, part.stop)
        return SpanModule(model, self._dtype)


def _with_same_tensors(model: Any) -> Any:
    """A copy of the modules and configs. Parameters and buffers are the original's: `requires_grad_(False)`, and never written to."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
