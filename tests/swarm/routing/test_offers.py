"""What peers offer: which of their units are served now."""

from __future__ import annotations

from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.routing.offers import UNMEASURED_MS_PER_BLOCK, Offer, Wish, candidates, named
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


def steps_ms(*loads: dict[str, float], proven: tuple[int, ...] = ()) -> list[float]:
    """What a step over four blocks counts as, of peers that announce these loads."""
    offers = []
    for number, load in enumerate(loads):
        (served,) = hosted(ModelId("m", A), Span(0, 4), 4, **load)
        offers.append(Offer(PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, hosted=(served,)), served))
    trusted = [offers[number].record.peer for number in proven]
    return [one.step_ms for one in candidates(offers, Wish(None, frozenset(), ()), 4, trusted)]


def test_a_node_that_has_served_no_step_counts_with_what_it_measured_when_it_loaded() -> None:
    assert steps_ms({"block_ms": 5.0}, {"block_ms": 3.0}) == [20.0, 12.0]
    assert steps_ms({"step_ms": 40.0, "block_ms": 1.0}, {"block_ms": 8.0}) == [40.0, 32.0], "its steps say more than that"
    assert steps_ms({}, {}) == [4 * UNMEASURED_MS_PER_BLOCK] * 2


def test_what_was_measured_alone_is_believed_within_the_bounds_of_every_claim() -> None:
    """The median is 5 ms a block: no peer counts as more than twice as fast, and one that never computed for us as 1.25 times as slow."""
    honest = {"step_ms": 20.0}
    assert steps_ms(honest, honest, {"block_ms": 0.01}) == [20.0, 20.0, 10.0]
    assert steps_ms(honest, honest, {"block_ms": 0.01}, proven=(0, 1)) == [20.0, 20.0, 25.0]
    assert steps_ms(honest, honest, {"block_ms": 9.0}, proven=(0, 1)) == [20.0, 20.0, 36.0], (
        "slower than usual is always believed"
    )
