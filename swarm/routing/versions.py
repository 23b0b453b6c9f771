"""Which version of a model in training a session gets.

The nodes of a run publish versions one after the other, each node when it is ready, so offers of several versions stand side by side. A
session takes the newest one that a complete route has: all of its blocks, in one precision, with equal chains. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.ids import Span
from protocols.weights_id import Weights
from swarm.routing import path
from swarm.routing.offers import Offer, Wish


def is_version_of(weights: Weights, base: Weights) -> bool:
    """Are these numbers of the same model (and adapter), at any version?"""
    return (weights.model, weights.adapter) == (base.model, base.adapter)


def of(offers: Sequence[Offer], weights: Weights) -> list[Offer]:
    """Those of exactly these weights."""
    return [offer for offer in offers if offer.hosted.weights == weights]


def complete(offers: Sequence[Offer], wish: Wish, num_blocks: int) -> list[Weights]:
    """The weights that a route can be made of, the newest version first.

    Of two chains of one version, the one that more peers serve comes first; then the larger one, so that equal offers give equal answers.
    """
    groups = _by_weights(offers)
    whole = [weights for weights, group in groups.items() if not _least_gaps(group, wish, num_blocks)]
    return sorted(whole, key=lambda one: (one.version, len(groups[one]), one.chain), reverse=True)


def fullest(offers: Sequence[Offer], wish: Wish, num_blocks: int) -> list[Offer]:
    """The offers of the weights that lack the fewest blocks, of those the newest: what a message about missing blocks is about."""
    groups = _by_weights(offers)
    best = min(groups, key=lambda one: (_least_gaps(groups[one], wish, num_blocks), -one.version, one.chain), default=None)
    return [] if best is None else groups[best]


def newer(weights: Weights, offers: Sequence[Offer], wish: Wish, num_blocks: int) -> Weights | None:
    """If these weights have no complete route and a newer version has one: that version. Nodes do not go back to an older one."""
    whole = complete(offers, wish, num_blocks)
    return whole[0] if whole and weights not in whole and whole[0].version > weights.version else None


def _by_weights(offers: Sequence[Offer]) -> dict[Weights, list[Offer]]:
    groups: dict[Weights, list[Offer]] = {}
    for offer in offers:
        groups.setdefault(offer.hosted.weights, []).append(offer)
    return groups


def _least_gaps(group: Sequence[Offer], wish: Wish, num_blocks: int) -> int:
    """Blocks that no route of these offers crosses, in the precision that lacks the fewest; 0 = there is a route."""
    spans: dict[tuple[str, str], set[Span]] = {}
    for offer in group:
        usable = path.can_take_part(offer.hosted.span, offer.beside, num_blocks, wish.needs)
        spans.setdefault(offer.hosted.precision, set()).update([offer.hosted.span] if usable else [])
    lacks = (path.unhosted(one, wish.blocks) if wish.blocks else path.missing(one, num_blocks) for one in spans.values())
    return min(sum(map(len, gaps)) for gaps in lacks)
