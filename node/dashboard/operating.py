"""What the page's buttons for operators do."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Protocol

from starlette.datastructures import Headers

from protocols.ids import PeerId
from protocols.orders import Ban, Order, OrderReply


class OrderRefusedError(Exception):
    """Why an order was not given, or not obeyed: one line for a person."""


class Operating(Protocol):
    """Gives orders in the name of one operator, to visitors who may give them."""

    def visitor(self, headers: Headers) -> str | None:
        """Who presses, in words, by the headers of a request; None = this visitor may not."""
        ...

    def known(self, peer: PeerId) -> OrderReply | None:
        """What a node has said of itself to the operator, some seconds ago; None = nothing, or it takes no orders from this operator."""
        ...

    async def run(self) -> None:
        """Ask the nodes that are seen, again and again, until cancelled."""
        ...

    def order(self, headers: Headers, peer: PeerId, order: Order) -> Coroutine[None, None, str]:
        """Give it; what was done, for a person. OrderRefusedError. headers: who presses."""
        ...

    def bans(self) -> tuple[Ban, ...] | None:
        """Peers over which this gateway's own answers do not go; None = there is no gateway here."""
        ...

    def ban_here(self, headers: Headers, peer: PeerId, seconds: int) -> str:
        """Let this gateway avoid a peer, or not any more (0 seconds); what was done. OrderRefusedError."""
        ...

    async def close(self) -> None:
        """Give no more orders."""
        ...
