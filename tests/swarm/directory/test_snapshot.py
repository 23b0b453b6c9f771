"""What a snapshot answers: gaps, digests, who serves."""

from __future__ import annotations

import pytest

from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord, ServedSpan
from swarm.directory.snapshot import Snapshot

A, B = "a" * 64, "b" * 64


def peer(number: int, span: str, *, digest: str = A, state: str = "serving", model: str = "m") -> PeerRecord:
    served = ServedSpan(model=ModelId(model, digest), span=Span.parse(span), num_blocks=8, dtype="float32")
    return PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, state=state, spans=(served,))


@pytest.mark.parametrize(
    ("spans", "gaps"),
    [
        ([], ["0:8"]),
        (["0:8"], []),
        (["0:3", "5:8"], ["3:5"]),
        (["2:4"], ["0:2", "4:8"]),
        (["0:4", "2:6"], ["6:8"]),
    ],
)
def test_gaps_are_the_blocks_that_nobody_serves(spans: list[str], gaps: list[str]) -> None:
    found = Snapshot("m", tuple(peer(number, span) for number, span in enumerate(spans)), 0.0)
    assert [str(gap) for gap in found.missing(8)] == gaps


def test_only_peers_that_serve_these_weights_close_a_gap() -> None:
    peers = (
        peer(1, "0:4"),
        peer(2, "4:8", state="joining"),
        peer(3, "4:8", digest=B),
        peer(4, "4:8", model="other"),
        peer(5, "0:2"),
    )
    found = Snapshot("m", peers, 0.0)
    assert found.missing(8, A) == [Span(4, 8)]
    assert found.missing(8) == []
    assert found.digests() == (A, B) and found.num_blocks() == 8 and len(found.serving(A)) == 2
    assert Snapshot("none", peers, 0.0).digests() == () and Snapshot("none", peers, 0.0).num_blocks() is None


def test_a_span_beyond_the_model_that_we_know_is_no_fault() -> None:
    assert Snapshot("m", (peer(1, "2:8"),), 0.0).missing(4) == [Span(0, 2)]
