"""Where a hop is in its session's route.

A new route makes a new one. The first hop and the last may be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import SwarmError
from protocols.ids import Span, short
from protocols.inference import Grant, HopLost


@dataclass(frozen=True, slots=True)
class Place:
    """Hop `index` of the route that the grant names, through a model of `num_blocks` blocks."""

    grant: Grant
    index: int
    num_blocks: int

    @property
    def span(self) -> Span:
        """The blocks that the hop runs: what its node hosts, or a part of that."""
        return self.grant.route[self.index].span

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == len(self.grant.route) - 1

    @property
    def takes_ids(self) -> bool:
        """The first hop, and its blocks are the model's first ones."""
        return self.is_first and self.span.start == 0

    @property
    def gives_logits(self) -> bool:
        """The last hop, and its blocks are the model's last ones."""
        return self.is_last and self.span.stop == self.num_blocks

    def lost(self, index: int, cause: SwarmError) -> HopLost:
        """The report that hop `index` of this route is lost."""
        return HopLost(session=self.grant.session, epoch=self.grant.epoch, index=index, code=cause.code, message=str(cause))

    def __str__(self) -> str:
        return f"session {short(self.grant.session)} hop {self.index} epoch {self.grant.epoch}"
