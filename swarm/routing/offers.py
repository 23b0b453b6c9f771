"""What peers offer of one model, and what a step costs there as far as their claims are believed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId, Span
from protocols.records import PeerRecord, ServedSpan
from swarm.routing import path
from swarm.speeds import believed_ms

UNMEASURED_MS_PER_BLOCK = 2.0
"""Assumed step time, in milliseconds for a block, of a node that has not served yet, if no other has either."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route has to be like."""

    blocks: Span | None
    """None = all of the model, by whole spans; else these, and a hop may be a part of what its node hosts."""
    thin: bool
    holding: Collection[tuple[PeerId, Span]]
    avoiding: Collection[PeerId] = ()
    """Pass by these if there is a way without them, and believe nobody's announced speed who has not computed for us."""

    def holds(self, peer: PeerId) -> bool:
        """Does this peer hold K/V of the session?"""
        return any(holder == peer for holder, _span in self.holding)


@dataclass(frozen=True, slots=True)
class Offer:
    """One span that one peer serves, of our model and in one precision."""

    record: PeerRecord
    served: ServedSpan

    @property
    def precision(self) -> tuple[str, str]:
        """What all hops of a route have in common."""
        return self.served.dtype, self.served.quantization


def named(peers: Iterable[PeerRecord], name: str) -> list[Offer]:
    """What is served now under a name."""
    serving = [Offer(record, served) for record in peers for served in record.spans if record.state_of(served) == "serving"]
    return [offer for offer in serving if offer.served.model.name == name]


def precisions(offers: Iterable[Offer]) -> list[tuple[str, str]]:
    """Those that are offered, float32 first."""
    return sorted({offer.precision for offer in offers}, key=lambda precision: (precision[0] != "float32", precision))


def candidates(offers: Sequence[Offer], wish: Wish, num_blocks: int, proven: Collection[PeerId]) -> list[path.Candidate]:
    """What each of these could be in the route. proven: peers that have computed for us (`swarm/speeds.py`)."""
    claims_ms = {offer.record.peer: offer.record.step_ms / len(offer.served.span) for offer in offers if len(offer.served.span)}
    block_ms = believed_ms(claims_ms, proven, UNMEASURED_MS_PER_BLOCK)
    return [
        path.Candidate(
            peer=offer.record.peer,
            span=part,
            step_ms=block_ms[offer.record.peer] * len(part) * (1 + offer.record.queue),
            free_tokens=offer.record.free_tokens,
            ends=offer.served.ends,
            is_holding=(offer.record.peer, part) in wish.holding,
        )
        for offer, part in _parts(offers, wish, num_blocks)
        if offer.record.peer in block_ms
    ]


def _parts(offers: Sequence[Offer], wish: Wish, num_blocks: int) -> list[tuple[Offer, Span]]:
    """What each offer could be in the route: its whole span, or a part of it where only some blocks are wished for."""
    if wish.blocks is None:
        return [(offer, offer.served.span) for offer in offers]
    offers = [offer for offer in offers if offer.served.span.stop <= num_blocks]
    kept = {edge for _, span in wish.holding for edge in (span.start, span.stop)}
    edges = kept | {edge for offer in offers for edge in (offer.served.span.start, offer.served.span.stop)}
    return [(offer, part) for offer in offers for part in path.parts(offer.served.span, wish.blocks, edges, kept)]
