"""Which version a session gets, by records."""

from __future__ import annotations

from dataclasses import replace

from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS
from protocols.weights_id import Weights
from swarm.routing import versions
from swarm.routing.offers import Offer, Wish
from tests.hosting import hosted

MODEL = ModelId("prose", "ab" * 32)
ANY, THIN = Wish(None, frozenset(), ()), Wish(None, ENDS, ())
NUM_BLOCKS = 6


def weights(version: int, chain: int = 1) -> Weights:
    return Weights(MODEL, version, bytes([chain]) * 32 if version else b"")


def offers(peer: str, span: Span, *served: Weights, ends: bool = True, dtype: str = "float32") -> list[Offer]:
    """One peer's blocks, of several versions."""
    units = tuple(
        replace(one, weights=which) for which in served for one in hosted(MODEL, span, NUM_BLOCKS, ends=ends, dtype=dtype)
    )
    record = PeerRecord(peer=PeerId(peer), hosted=units)
    return [Offer(record, one) for one in record.blocks()]


def test_a_version_counts_if_a_whole_route_has_it_and_the_newest_comes_first() -> None:
    found = [*offers("a", Span(0, 3), weights(8), weights(10)), *offers("b", Span(3, 6), weights(6), weights(8))]
    assert versions.complete(found, ANY, NUM_BLOCKS) == [weights(8)], "10 and 6 are half published"
    found += offers("c", Span(3, 6), weights(10))
    assert versions.complete(found, ANY, NUM_BLOCKS) == [weights(10), weights(8)]
    assert versions.complete(found, Wish(Span(1, 3), frozenset(), ()), NUM_BLOCKS) == [weights(10), weights(8)]
    assert [one.record.peer for one in versions.of(found, weights(10))] == ["a", "c"]


def test_version_zero_is_taken_if_there_is_no_other() -> None:
    found = [*offers("a", Span(0, 3), weights(0), weights(2)), *offers("b", Span(3, 6), weights(0))]
    assert versions.complete(found, ANY, NUM_BLOCKS) == [weights(0)]
    assert versions.complete(found[:1], ANY, NUM_BLOCKS) == versions.complete([], ANY, NUM_BLOCKS) == []


def test_two_chains_of_one_version_are_two_and_the_one_of_more_peers_is_taken() -> None:
    left = offers("a", Span(0, 3), weights(4, 1), weights(4, 2))
    assert versions.complete([*left, *offers("b", Span(3, 6), weights(4, 3))], ANY, NUM_BLOCKS) == []
    both = [*left, *offers("b", Span(3, 6), weights(4, 2)), *offers("c", Span(3, 6), weights(4, 1))]
    assert versions.complete(both, ANY, NUM_BLOCKS) == [weights(4, 2), weights(4, 1)], "a tie: the larger chain"
    assert versions.complete([*both, *offers("d", Span(3, 6), weights(4, 1))], ANY, NUM_BLOCKS)[0] == weights(4, 1)


def test_a_route_has_one_precision_and_a_thin_client_needs_the_ends() -> None:
    mixed = [*offers("a", Span(0, 3), weights(2)), *offers("b", Span(3, 6), weights(2), dtype="bfloat16")]
    assert versions.complete(mixed, ANY, NUM_BLOCKS) == []
    bare = [*offers("a", Span(0, 3), weights(2), ends=False), *offers("b", Span(3, 6), weights(2))]
    assert versions.complete(bare, ANY, NUM_BLOCKS) == [weights(2)] and versions.complete(bare, THIN, NUM_BLOCKS) == []


def test_a_version_is_gone_only_if_a_newer_one_has_a_route() -> None:
    found = [*offers("a", Span(0, 3), weights(4), weights(6)), *offers("b", Span(3, 6), weights(6))]
    assert versions.newer(weights(4), found, ANY, NUM_BLOCKS) == weights(6)
    assert versions.newer(weights(6), found, ANY, NUM_BLOCKS) is None
    assert versions.newer(weights(8), found, ANY, NUM_BLOCKS) is None, "an older one is no replacement: wait"
    assert versions.newer(weights(4), found[:2], ANY, NUM_BLOCKS) is None, "nor half a newer one"


def test_a_message_about_missing_blocks_is_about_the_version_that_lacks_least() -> None:
    found = [*offers("a", Span(0, 3), weights(4), weights(6)), *offers("b", Span(3, 5), weights(4))]
    assert {one.hosted.weights for one in versions.fullest(found, ANY, NUM_BLOCKS)} == {weights(4)}
    assert versions.fullest([], ANY, NUM_BLOCKS) == []
