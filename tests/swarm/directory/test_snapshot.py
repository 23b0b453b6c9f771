"""What a snapshot answers: who serves."""

from __future__ import annotations

from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from swarm.directory.snapshot import Snapshot
from tests.hosting import hosted

A, B = "a" * 64, "b" * 64


def peer(number: int, span: str, *, digest: str = A, state: str = "serving", model: str = "m") -> PeerRecord:
    served = hosted(ModelId(model, digest), Span.parse(span), 8)
    return PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, state=state, hosted=served)


def test_only_blocks_of_this_model_that_are_ready_are_serving() -> None:
    peers = (
        peer(1, "0:4"),
        peer(2, "4:8", state="joining"),
        peer(3, "4:8", digest=B),
        peer(4, "4:8", model="other"),
        peer(5, "0:2"),
        peer(6, "2:8", state="draining"),
    )
    found = Snapshot("m", peers, 0.0)
    assert [one.peer for one, _ in found.serving()] == [peers[0].peer, peers[2].peer, peers[4].peer]
    serving = found.serving(Weights(ModelId("m", A)))
    assert [(one.peer, str(blocks.span)) for one, blocks in serving] == [
        (peers[0].peer, "0:4"),
        (peers[4].peer, "0:2"),
    ]
    assert Snapshot("none", peers, 0.0).serving() == ()
