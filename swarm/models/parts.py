"""Loaded blocks and parts of them, as modules over the same tensors.

A route may ask a node for fewer blocks than it hosts. Each part is what `load_span` of those blocks would give, but no tensor is
copied: only the modules around them are, since their cache indices and configs differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protocols.ids import Span
from swarm.models.sharing import exchange, numbered_tensors, twin
from swarm.models.skeleton import renumber_caches, shorten
from swarm.models.span import SpanModule


class SpanParts:
    """Cuts parts out of blocks `span`. It keeps the modules as they were loaded, with the config of the whole model."""

    def __init__(self, model: Any, span: Span, dtype: torch.dtype) -> None:
        """model: pruned to `span` and loaded, not shortened, and not frozen yet: what it trains is noted. It stays the caller's."""
        self.span = span
        self._model, self._dtype = twin(model, model), dtype
        self.trainable = frozenset(name for name, tensor in self.tensors().items() if tensor.requires_grad)
        """Names, as in `tensors`, of what transformers trains: some families keep a router's bias or a table as it is."""

    def cut(self, part: Span) -> SpanModule:
        """Blocks `part`, which lie within the span. From any thread."""
        assert self.span.start <= part.start and part.stop <= self.span.stop
        model = twin(self._model, self._model)
        location = model.swarm_location
        start = part.start - self.span.start
        blocks = location.blocks[start : start + len(part)]
        setattr(location.owner, location.attribute, blocks)
        renumber_caches(blocks, start)
        shorten(model, part.start, part.stop)
        return SpanModule(model, self._dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What the blocks hold, by `NUMBER.NAME`: the block's number in the whole model, and the name within the block."""
        return numbered_tensors(self._model.swarm_location.blocks, self.span.start)

    def with_tensors(self, others: Mapping[str, Tensor]) -> SpanParts:
        """The same blocks with copies of these in place of the tensors of those names; they fit (`check_fit`)."""
        return exchange(self, self._model, self.tensors(), others)
