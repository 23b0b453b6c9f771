"""What peers offer: which of their units are served now."""

from __future__ import annotations

from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.routing.offers import named
from tests.hosting import hosted

A, B = "a" * 64, "b" * 64


def peer(number: int, span: str, *, digest: str = A, state: str = "serving", model: str = "m") -> PeerRecord:
    served = hosted(ModelId(model, digest), Span.parse(span), 8)
    return PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, state=state, hosted=served)


def test_only_blocks_of_this_name_that_are_ready_are_offered() -> None:
    peers = (
        peer(1, "0:4"),
        peer(2, "4:8", state="joining"),
        peer(3, "4:8", digest=B),
        peer(4, "4:8", model="other"),
        peer(5, "0:2"),
        peer(6, "2:8", state="draining"),
    )
    assert [(offer.record, str(offer.hosted.span)) for offer in named(peers, "m")] == [
        (peers[0], "0:4"),
        (peers[2], "4:8"),
        (peers[4], "0:2"),
    ]
    assert named(peers, "none") == []
