"""`swarm bench`: what a node more would change, and its lines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.benching.newcomer import HERE_MS, NAME, Newcomer, gain
from node.cli.machine import bench
from node.watching.look import Look, seen
from node.watching.what_if import as_served
from protocols.errors import ConfigError
from protocols.identity import from_seed
from protocols.ids import Span
from protocols.records import PeerRecord
from protocols.units import ENDS
from protocols.weights_id import Weights
from swarm.placement.choose import Capacity
from swarm.placement.members import Member
from tests.node.dashboard.made_swarm import MODEL, made_record

ME = from_seed(b"m" * 32).peer_id
FIRST = made_record(1, Span(0, 3), 6, "first", block_ms=2.0, step_ms=6.0)
SECOND = made_record(2, Span(3, 6), 6, "second", block_ms=2.0, step_ms=6.0)


def look_at(*records: PeerRecord) -> Look:
    return seen(0.0, {MODEL.name: records}, (), {one.peer: 10.0 for one in records})


def members(*records: PeerRecord) -> list[Member]:
    return [Member(peer=one.peer, span=one.blocks()[0].span, speed=0.5, beside=one.beside(one.blocks()[0])) for one in records]


def newcomer(free_bytes: int = 6, block_ms: float = 1.0, ends: bool = True) -> Newcomer:
    return Newcomer(
        peer=ME, weights=Weights(MODEL), dtype="float32", block_ms=block_ms, hosts_ends=ends,
        capacity=Capacity(free_bytes=free_bytes, block_bytes=(1,) * 6), trips_ms={FIRST.peer: 10.0, SECOND.peer: 10.0},
    )  # fmt: skip


def test_a_node_that_fills_a_gap_makes_the_model_whole() -> None:
    found = gain(members(FIRST), newcomer(free_bytes=3), look_at(FIRST))
    assert (found.span, found.missing_before, found.missing_after) == (Span(3, 6), (Span(3, 6),), ())
    assert found.swarm_before == 0.0 < found.swarm_after
    assert not found.route_before.legs and found.route_after.legs
    assert bench._gain(found) == "blocks 3:6 have no node; the model would be whole"
    half = gain(members(FIRST), newcomer(free_bytes=2), look_at(FIRST))
    assert half.missing_after and bench._gain(half).endswith(f"{half.missing_after[0]} would be missing still")


def test_a_fast_node_here_shortens_the_way_and_a_slow_one_changes_no_route() -> None:
    records = (FIRST, SECOND)
    fast = gain(members(*records), newcomer(), look_at(*records))
    assert fast.route_before == as_served(MODEL.name, 6, look_at(*records)), "the very route that clients get"
    assert fast.span == Span(0, 6) and [leg.what for leg in fast.route_after.legs][1].startswith(NAME)
    assert fast.route_after.token_ms == pytest.approx(6 * 1.0 + HERE_MS)
    # 3 blocks of 2 ms at each of two nodes: 1/6 of a token a millisecond; with 6 blocks of 1 ms beside them: 1/6 more
    assert (fast.swarm_before, fast.swarm_after) == (pytest.approx(1e3 / 6), pytest.approx(2e3 / 6))
    assert "the swarm: 167 tokens/s at the slowest block, then 333" in bench._gain(fast)
    slow = gain(members(*records), newcomer(block_ms=50.0), look_at(*records))
    assert slow.route_after.token_ms == slow.route_before.token_ms and slow.swarm_after > slow.swarm_before


def test_without_embedding_and_head_it_is_on_no_route_of_a_client_without_weights() -> None:
    records = (FIRST, SECOND)
    found = gain(members(*records), newcomer(ends=False), look_at(*records))
    assert found.route_after == found.route_before
    bare = tuple(replace(one, hosted=tuple(unit for unit in one.hosted if unit.unit not in ENDS)) for one in records)
    assert not gain(members(*bare), newcomer(), look_at(*bare)).route_before.legs


def test_a_machine_on_which_nothing_fits_is_told_so() -> None:
    with pytest.raises(ConfigError, match="no memory for even one of the model's blocks"):
        gain(members(FIRST), newcomer(free_bytes=0), look_at(FIRST))
