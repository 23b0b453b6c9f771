"""Checks the grant: may this caller run this session here?

Over this route, by the client's signature.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import identity
from protocols.defaults import GRANT_LIFE_S
from protocols.errors import BadRequestError, ModelMismatchError, SpanNotServedError, UnauthenticatedError
from protocols.ids import PeerId, Span, short_peer
from protocols.inference import Grant
from protocols.units import Blocks, Unit, is_part
from protocols.weights_id import Weights, difference, short


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a node serves, as far as a session must agree with it."""

    peer: PeerId
    weights: Weights
    blocks: Blocks
    beside: frozenset[Unit] = frozenset()
    """Units that are hosted beside the blocks."""
    num_blocks: int
    """Blocks of the whole model."""
    hidden_size: int
    dtype: str

    @property
    def span(self) -> Span:
        """The numbers of the blocks."""
        return self.blocks.span


CLOCK_ALLOWANCE_S = 1_200.0
"""How far the client's clock may be ahead of ours."""


def verify(grant: Grant, served: Served, now_s: float) -> None:
    """Check signature, expiry and weights of a grant; UnauthenticatedError or ModelMismatchError says what is wrong."""
    if grant.expires_s <= now_s:
        raise UnauthenticatedError(
            f"the grant expired {now_s - grant.expires_s:.0f} s ago: check the clocks of both machines, or open a new session"
        )
    if grant.expires_s > now_s + GRANT_LIFE_S + CLOCK_ALLOWANCE_S:
        raise UnauthenticatedError(
            f"a grant ends within {GRANT_LIFE_S:.0f} s, got one that ends in {grant.expires_s - now_s:.0f} s: "
            "check the clocks of both machines"
        )
    identity.verify(grant.client, grant.signature, grant.signed_bytes())
    if what := difference(served.weights, grant.weights):
        raise ModelMismatchError(
            f"this peer serves {short(served.weights)}, the session is for {short(grant.weights)}: "
            f"the two hold different weights ({what}); use the same checkpoint, or another model name"
        )


def verify_place(grant: Grant, index: int, served: Served) -> None:
    """Check that hop `index` of the route is this very node, with blocks that it serves, and that the route lies in the model."""
    hop = grant.route[index]
    if hop.peer != served.peer:
        raise BadRequestError(f"hop {index} of the route is {short_peer(hop.peer)}, this is {short_peer(served.peer)}")
    if not is_part(hop.unit, served.blocks):
        raise SpanNotServedError(f"this peer serves {served.blocks}, the route wants {hop.unit}: look the directory up again")
    if grant.route[-1].span.stop > served.num_blocks:
        raise BadRequestError(
            f"a route lies within blocks 0:{served.num_blocks}, got {grant.route[0].span.start}:{grant.route[-1].span.stop}"
        )


def caller_of(grant: Grant, index: int) -> PeerId:
    """Who must be calling hop `index`: the hop above it, or the client."""
    return grant.client if index == 0 else grant.route[index - 1].peer


def keeps_below(before: Grant, after: Grant, index: int) -> bool:
    """Does the new route keep the hop below `index` that we already have a wire to?"""
    return after.route[index + 1].place in {hop.place for hop in before.route}
