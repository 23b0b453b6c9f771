"""The best route over peers that have answered.

It goes by what they announce, as far as it is believed, and by what the client knows of them (`experience.py`). Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from protocols.ids import PeerId, Span
from protocols.inference import Hop, Route
from protocols.records import PeerRecord
from protocols.units import Blocks
from swarm.routing import path
from swarm.routing.offers import Offer, Wish, candidates, precisions

DISBELIEVED_MS = 1_000.0
"""Milliseconds that all blocks take, at least, at peers whose announced speed is not believed.

After a new peer's failure, it is added to what new peers announce.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a client knows at one moment of the peers that it chooses from."""

    ready: frozenset[PeerId]
    """They have answered lately and are not avoided: a route may go over them."""

    proven: frozenset[PeerId]
    """They have computed for us, or the user vouches for them."""

    strikes: Callable[[PeerId], int]
    """Disputes that count against a peer."""

    caution_ms: float
    """Milliseconds by which all blocks count as slower at peers that are not proven."""

    between_ms: Callable[[PeerRecord | None, PeerRecord | None], float]
    """One-way milliseconds between two peers; None is the client."""


def best(
    offers: Sequence[Offer], wish: Wish, num_blocks: int, known: Known, chance: Callable[[], float]
) -> tuple[Route, str] | None:
    """The best route over those that are ready, and its compute dtype. One route, one precision, float32 first.

    chance: uniform in [0, 1).
    """
    ready = [offer for offer in offers if offer.record.peer in known.ready]
    records = {offer.record.peer: offer.record for offer in ready}
    blocks, alike = wish.blocks or Span(0, num_blocks), _alike(offers, wish)
    for precision in precisions(ready):
        group = [offer for offer in ready if offer.hosted.precision == precision]
        chosen = path.best(
            [_doubted(one, wish, num_blocks, known, alike, chance) for one in candidates(group, wish, num_blocks, known.proven)],
            blocks.stop,
            lambda a, b: known.between_ms(records[a] if a else None, records[b] if b else None),
            wish.needs,
            blocks.start,
        )
        if chosen is not None:
            return tuple(_hop(one, records[one.peer]) for one in chosen), precision[0]
    return None


def _hop(chosen: path.Candidate, record: PeerRecord) -> Hop:
    return Hop(chosen.peer, record.addresses, record.certificate, Blocks.of(chosen.span))


def _alike(offers: Iterable[Offer], wish: Wish) -> Counter[PeerId]:
    """For each peer: how many peers to be avoided host the blocks of one of its units.

    Made-up peers tend to claim the same, so those that are like avoided ones are tried later.
    """
    hosted = {(offer.record.peer, offer.hosted.span) for offer in offers}
    avoided, alike = Counter(span for peer, span in hosted if peer in wish.avoiding), Counter[PeerId]()
    for peer, span in hosted:
        alike[peer] = max(alike[peer], avoided[span])
    return alike


def _doubted(
    candidate: path.Candidate,
    wish: Wish,
    num_blocks: int,
    known: Known,
    alike: Counter[PeerId],
    chance: Callable[[], float],
) -> path.Candidate:
    """The same with the disputes that it is suspected of, and without its word if it is not believed."""
    peer, step_ms, share = candidate.peer, candidate.step_ms, len(candidate.span) / num_blocks
    if peer not in known.proven and not candidate.is_holding:
        if wish.avoiding:
            step_ms = DISBELIEVED_MS * share * (1 + chance() + alike[peer])
        else:
            step_ms += known.caution_ms * share
    return replace(candidate, doubts=known.strikes(peer) + (peer in wish.avoiding), step_ms=step_ms)
