"""Refusals of a request, and when the user hears them.

Whose word each may be, and when enough peers have said the same.

A class of error says "no other peer would do better". That is one peer's claim: that peer is replaced, and another is asked. The error is
raised once AGREED peers, none of which could have spoken for another, have said so, or once no other peer is left to ask. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.errors import SwarmError
from protocols.ids import PeerId
from protocols.inference import Route

AGREED = 3
"""Number of peers that must refuse a request with the same class of error before the client raises it while other peers are left.
None of them may have passed on another's word. Fewer would let a few hostile peers end any request."""


@dataclass(frozen=True, slots=True)
class Refusal:
    cause: SwarmError
    sayers: frozenset[PeerId]
    """Any one of these may have made it up: the hop itself, and, if they only passed it on, the hops above it."""


def sayers(route: Route, index: int, is_told: bool) -> frozenset[PeerId]:
    """Whose word it may be that hop `index` refuses."""
    return frozenset(hop.peer for hop in (route[: index + 1] if is_told else route[index : index + 1]))


def is_agreed(refusals: Sequence[Refusal]) -> bool:
    """Have enough peers said the same as the last one?"""
    said: set[PeerId] = set()
    words = 0
    for refusal in reversed(refusals):
        if refusal.cause.code == refusals[-1].cause.code and said.isdisjoint(refusal.sayers):
            said |= refusal.sayers
            words += 1
    return words >= AGREED
