"""The record of a node that serves several models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from node.config import NodeConfig
from node.placement.announcing import Announcement
from node.placement.presence import Presence
from node.placement.span_choice import as_member
from protocols.identity import from_seed
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from swarm import places
from swarm.placement.covering import cover
from swarm.placement.members import Member

CONFIG = NodeConfig(model="m", data_dir=places.data_dir({"HOME": "/h"}))
NUM_BLOCKS = 6


def announcing(*capacities: int) -> Announcement:
    """A node that is about to host blocks 0:3 of as many models as there are capacities."""
    peer: Any = SimpleNamespace(
        peer_id=from_seed(b"1" * 32).peer_id, addresses=("127.0.0.1:1",), certificate=b"", multiaddrs=(), reachable=None,
        round_trips_ms={}, ping=None,
    )  # fmt: skip
    announcement = Announcement(CONFIG, peer)
    for number, capacity in enumerate(capacities):
        presence = Presence(CONFIG, peer, ModelId(f"m{number}", f"{number}" * 64), NUM_BLOCKS, announcement)
        presence.dtype, presence.joining, presence.capacity_blocks = "float32", Span(0, 3), capacity
    return announcement


def test_a_capacity_is_of_one_model() -> None:
    record = PeerRecord.parse(announcing(0, 4).record().encode())
    pinned, free = [as_member(record, one) for one in record.blocks()]
    assert (pinned.capacity_blocks, free.capacity_blocks) == (0, 4)
    other = Member(peer=PeerId("other"), span=Span(0, 3), capacity_blocks=3)
    plan = {one.peer: one.span for one in cover([pinned, other], NUM_BLOCKS)}
    assert plan == {pinned.peer: Span(0, 3), other.peer: Span(3, 6)}, "the gap is filled by the one that can move"
