"""What peers offer of one model, and what a step costs.

Their claims of cost are believed within limits. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from protocols.hosted import Hosted
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from protocols.units import Unit
from swarm.routing import path
from swarm.speeds import believed_ms

UNMEASURED_MS_PER_BLOCK = 2.0
"""Assumed step time, in milliseconds for a block, of a node that has measured nothing, if no other has either."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route has to be like."""

    blocks: Span | None
    """None = all of the model, by whole spans; else these, and a hop may be a part of what its node hosts."""
    needs: frozenset[Unit]
    """What the first and the last hop must host beside their blocks (`units.ENDS` for a thin client)."""
    holding: Collection[tuple[PeerId, Span]]
    avoiding: Collection[PeerId] = ()
    """Avoid these if there is a way without them, and do not believe announced speeds of peers that have not computed for us."""

    def holds(self, peer: PeerId) -> bool:
        """Does this peer hold K/V of the session?"""
        return any(holder == peer for holder, _span in self.holding)


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks that one peer serves, of our model and in one precision."""

    record: PeerRecord
    hosted: Hosted

    @property
    def beside(self) -> frozenset[Unit]:
        """What the peer serves beside them."""
        return self.record.beside(self.hosted)


def named(peers: Iterable[PeerRecord], name: str) -> list[Offer]:
    """What is served now under a name."""
    offers = (Offer(record, one) for record in peers for one in record.blocks() if one.weights.model.name == name)
    return [offer for offer in offers if offer.record.state_of(offer.hosted) == "serving"]


def precisions(offers: Iterable[Offer]) -> list[tuple[str, str]]:
    """Those that are offered, float32 first."""
    return sorted({offer.hosted.precision for offer in offers}, key=lambda precision: (precision[0] != "float32", precision))


def candidates(offers: Sequence[Offer], wish: Wish, num_blocks: int, proven: Collection[PeerId]) -> list[path.Candidate]:
    """What each of these could be in the route. proven: peers that have computed for us (`swarm/speeds.py`)."""
    block_ms = believed_ms(_claims_ms(offers), proven, UNMEASURED_MS_PER_BLOCK)
    return [
        path.Candidate(
            peer=offer.record.peer,
            span=part,
            step_ms=block_ms[offer.record.peer] * len(part) * (1 + offer.hosted.load.queue),
            free_tokens=offer.hosted.load.free_tokens,
            beside=offer.beside if wish.needs else frozenset(),
            is_holding=(offer.record.peer, part) in wish.holding,
        )
        for offer, part in _parts(offers, wish, num_blocks)
    ]


def _claims_ms(offers: Iterable[Offer]) -> dict[PeerId, float]:
    """Milliseconds for a block, as each peer claims once: the least of its steps, else of what it measured at load; 0 = nothing."""
    steps_ms, alone_ms = defaultdict[PeerId, list[float]](list), defaultdict[PeerId, list[float]](list)
    for offer in offers:
        steps_ms[offer.record.peer].append(offer.hosted.load.step_ms / len(offer.hosted.span))
        alone_ms[offer.record.peer].append(offer.hosted.load.block_ms)
    return {peer: _least(steps_ms[peer]) or _least(alone_ms[peer]) for peer in steps_ms}


def _least(measured_ms: Iterable[float]) -> float:
    return min((ms for ms in measured_ms if ms), default=0.0)


def _parts(offers: Sequence[Offer], wish: Wish, num_blocks: int) -> list[tuple[Offer, Span]]:
    """What each offer could be in the route: its whole span, or a part of it where only some blocks are wished for."""
    if wish.blocks is None:
        return [(offer, offer.hosted.span) for offer in offers]
    offers = [offer for offer in offers if offer.hosted.span.stop <= num_blocks]
    kept = {edge for _, span in wish.holding for edge in (span.start, span.stop)}
    edges = kept | {edge for offer in offers for edge in (offer.hosted.span.start, offer.hosted.span.stop)}
    return [(offer, part) for offer in offers for part in path.parts(offer.hosted.span, wish.blocks, edges, kept)]
