"""Placement covers all that memory allows within ROUNDS rounds.

It does so whichever peers come and go, and then no peer moves any more.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerId, Span
from protocols.units import ENDS, Expert
from swarm.placement.balancing import GAIN, balance
from swarm.placement.members import Member, ends_hosts, is_routable, num_covered, throughputs
from swarm.placement.rebalance import ROUNDS, decide, may_retire, may_switch, plan
from tests.swarm.placement.simulation import COOL_DOWN_ROUNDS, Simulation

SETTLE = 40
"""Rounds that balancing may take on top, before all must stand still."""


def peer(number: int) -> PeerId:
    return PeerId(f"peer-{number}")


def member(number: int, span: str, capacity: int = 0, speed: float = 1.0, has_ends: bool = False) -> Member:
    return Member(
        peer=peer(number), span=Span.parse(span), capacity_blocks=capacity, speed=speed, beside=ENDS if has_ends else frozenset()
    )


def heal(swarm: Simulation) -> int:
    """Rounds until all is covered."""
    for rounds in range(ROUNDS + 1):
        if swarm.is_healed:
            return rounds
        swarm.round()
    raise AssertionError(f"not healed after {ROUNDS} rounds: {swarm.spans()} of {swarm.num_blocks}, could {swarm.could_cover}")


def stand_still(swarm: Simulation) -> int:
    """Rounds until no peer has moved for some; what is healed must stay so all the while."""
    still = 0
    for rounds in range(SETTLE):
        with_ends, is_urgent = swarm.num_edges_with_ends, not swarm.is_routable
        still = 0 if swarm.round() else still + 1
        assert swarm.is_healed, swarm.spans()
        assert is_urgent or swarm.num_edges_with_ends >= with_ends, "a move for a gain took the last ends along"
        if still > COOL_DOWN_ROUNDS + 2:
            return rounds - still + 1
    raise AssertionError(f"still moving after {SETTLE} rounds, {swarm.moves} moves")


@pytest.mark.parametrize("manner", ["together", "in_turn", "mixed"])
@pytest.mark.parametrize("seed", range(50))
def test_six_nodes_in_any_order_cover_all_that_their_memory_can(seed: int, manner: str) -> None:
    print("seed", seed)
    swarm = Simulation(num_blocks=12, seed=seed, manner=manner)
    draw = swarm.random
    rooms = [draw.randint(1, 6) for _ in range(6)]
    speeds = [draw.choice([1.0, 1.0, 2.0, 5.0]) for _ in range(6)]
    swarm.without_ends = {peer(number) for number in draw.sample(range(6), draw.randint(0, 4))}
    for _event in range(20):
        for number in draw.sample(range(6), draw.choice([1, 1, 2, 3])):
            if peer(number) in swarm.members:
                swarm.leave(peer(number))
            else:
                swarm.arrive(peer(number), rooms[number], speeds[number])
        heal(swarm)
        if draw.random() < 0.5:
            stand_still(swarm)
    stand_still(swarm)


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_peers_do_too_in_seconds(seed: int) -> None:
    swarm = Simulation(num_blocks=80, seed=seed)
    draw = swarm.random
    started = time.perf_counter()
    peers = [peer(number) for number in range(1_000)]
    draw.shuffle(peers)
    most = 0
    while peers:
        for one in [peers.pop() for _ in range(min(len(peers), draw.choice([1, 5, 40, 120])))]:
            swarm.arrive(one, draw.randint(1, 20), draw.choice([0.5, 1.0, 4.0]))
        for one in draw.sample(sorted(swarm.members), len(swarm.members) // draw.choice([3, 10, 50])):
            swarm.leave(one)
        most = max(most, heal(swarm))
    settled = stand_still(swarm)
    spent_s = time.perf_counter() - started
    print(f"seed {seed}: healed within {most} rounds, still after {settled} more, {swarm.moves} moves, {spent_s:.1f} s")


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[Member], int]:
    num_blocks = draw(st.integers(1, 10))
    members = []
    for number in range(draw(st.integers(0, 7))):
        start = draw(st.integers(0, num_blocks - 1))
        span = Span(start, draw(st.integers(start + 1, num_blocks)))
        capacity = draw(st.sampled_from([0, len(span), len(span) + 1, len(span) + 3]))
        speed, has_ends = draw(st.sampled_from([0.5, 1.0, 3.0])), draw(st.booleans())
        members.append(
            Member(peer=peer(number), span=span, capacity_blocks=capacity, speed=speed, beside=ENDS if has_ends else frozenset())
        )
    return members, num_blocks


def carried_out(members: list[Member], num_blocks: int) -> list[Member]:
    moves = plan(members, num_blocks)
    return [one.at(moves[one.peer].span) if one.peer in moves else one for one in members]


@given(swarms())
def test_a_plan_never_loses_a_block_moves_nobody_who_stays_and_respects_rooms(given: tuple[list[Member], int]) -> None:
    members, num_blocks = given
    after = carried_out(members, num_blocks)
    assert num_covered(after, num_blocks) >= num_covered(members, num_blocks)
    assert is_routable(after, num_blocks) >= is_routable(members, num_blocks)
    for old, new in zip(members, after, strict=True):
        assert new.span == old.span or len(new.span) <= new.capacity_blocks
        assert new.span.stop <= num_blocks


@given(swarms())
def test_plans_end_and_what_all_rooms_can_hold_is_covered_by_the_first(given: tuple[list[Member], int]) -> None:
    members, num_blocks = given
    free = [replace(one, capacity_blocks=one.capacity_blocks or len(one.span)) for one in members]
    after = carried_out(free, num_blocks)
    could = min(num_blocks, sum(one.capacity_blocks for one in free))
    assert num_covered(after, num_blocks) == could
    assert could < num_blocks or is_routable(after, num_blocks)
    for _round in range(SETTLE):
        after, before = carried_out(after, num_blocks), after
        if after == before:
            return
    raise AssertionError("the plans do not end")


@given(swarms(), st.randoms(use_true_random=False))
def test_the_order_in_which_the_directory_lists_peers_does_not_matter(given: tuple[list[Member], int], draw: object) -> None:
    members, num_blocks = given
    shuffled = list(members)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, num_blocks) == plan(members, num_blocks)


@given(swarms())
def test_where_a_route_exists_nobody_moves_for_less_than_the_margin(given: tuple[list[Member], int]) -> None:
    members, num_blocks = given
    before = min(throughputs(members, num_blocks))
    if before and plan(members, num_blocks):
        assert min(throughputs(carried_out(members, num_blocks), num_blocks)) >= before * GAIN * 0.999


def thin_route(members: list[Member], num_blocks: int) -> bool:
    """Whether ends lead to ends, tried one hop after the other."""
    reached = {one.span.stop for one in members if one.span.start == 0 and one.beside}
    for _hop in members:
        reached |= {one.span.stop for one in members if one.span.start in reached and (one.span.stop < num_blocks or one.beside)}
    whole = any(one.span == Span(0, num_blocks) and one.beside for one in members)
    inner = {one.span.start for one in members if one.span.stop == num_blocks and one.beside}
    return whole or any(start in reached for start in inner)


@given(swarms())
def test_who_balances_leaves_each_edge_its_ends_and_thin_clients_their_route(given: tuple[list[Member], int]) -> None:
    members, num_blocks = given
    after = balance(members, num_blocks)
    for old, new in zip(ends_hosts(members, num_blocks), ends_hosts(after, num_blocks), strict=True):
        assert bool(new) >= bool(old)
    assert thin_route(after, num_blocks) >= thin_route(members, num_blocks)


@given(swarms(), st.data())
def test_the_last_look_agrees(given: tuple[list[Member], int], data: st.DataObject) -> None:
    members, num_blocks = given
    if not members or not is_routable(members, num_blocks):
        return
    me = data.draw(st.sampled_from(members))
    start = data.draw(st.integers(0, num_blocks - 1))
    others, target = [one for one in members if one is not me], Span(start, data.draw(st.integers(start + 1, num_blocks)))
    if target != me.span and may_switch(me, target, others, num_blocks):
        assert thin_route([*others, me.at(target)], num_blocks) >= thin_route(members, num_blocks)
    if may_retire(me, others, num_blocks):
        assert thin_route(others, num_blocks) >= thin_route(members, num_blocks)


def test_the_last_to_host_the_ends_stays_and_a_replica_goes_instead() -> None:
    crowd = [member(1, "0:4", 4, has_ends=True), *(member(number, "0:4", 4) for number in range(2, 6)), member(8, "4:8", 4)]
    assert len(plan(crowd, 8)) == 2 and peer(1) not in plan(crowd, 8)
    alone = [member(1, "0:4", 4, has_ends=True), member(2, "0:4"), member(3, "0:4"), member(8, "4:8", 4)]
    assert list(plan([replace(one, beside=frozenset()) for one in alone], 8)) == [peer(1)]
    assert plan(alone, 8) == {}, "no other peer can move, so none does"
    assert not may_switch(alone[0], Span(4, 8), alone[1:], 8) and not may_retire(alone[0], alone[1:], 8)
    assert list(plan([alone[0], replace(alone[1], beside=ENDS), *alone[2:]], 8)) == [peer(1)], "another hosts them, too"


def test_who_hosts_another_unit_than_embedding_and_head_is_not_kept_for_it() -> None:
    for first in range(12):
        ends, expert = (
            member(first, "0:4", 4, has_ends=True),
            replace(member(first + 1, "0:4", 4), beside=frozenset([Expert(0, 0)])),
        )
        assert list(plan([ends, expert], 8)) == [expert.peer]


def test_a_gap_is_filled_by_the_last_with_ends_only_if_nobody_else_is_missed_as_little() -> None:
    for first in range(12):
        crowd = [member(first + number, "0:4", 4, has_ends=number == 0) for number in range(3)]
        for alike in (crowd, crowd[:2]):
            assert len(plan(alike, 8)) == 1 and peer(first) not in plan(alike, 8)
        roomy = [replace(crowd[0], capacity_blocks=5), replace(crowd[1], capacity_blocks=5), crowd[2]]
        assert list(plan(roomy, 8)) == [peer(first + 1)]
    pinned = [member(1, "0:4", 4, has_ends=True), member(2, "0:4")]
    assert list(plan(pinned, 8)) == [peer(1)], "a gap is worse than no route for thin clients"
    assert may_switch(pinned[0], Span(4, 8), pinned[1:], 8)


def test_one_replica_fills_a_gap_and_the_reason_names_it() -> None:
    members = [member(1, "0:4", 4), member(2, "0:4", 4), member(3, "0:4", 4), member(4, "8:12", 4)]
    (moved, move), *others = plan(members, 12).items()
    assert not others and moved in (peer(1), peer(2), peer(3)) and move.span == Span(4, 8) and move.is_urgent
    assert "no node hosts 4:8" in move.reason
    assert decide(moved, members, 12) == move and decide(peer(4), members, 12) is None


def test_the_one_who_is_missed_least_goes() -> None:
    members = [*(member(number, "0:4", 4) for number in range(2)), *(member(number, "4:8", 4) for number in range(2, 7))]
    (moved,) = plan(members, 12)
    assert moved in [peer(number) for number in range(2, 7)]


def test_neighbours_grow_and_shift_where_there_is_no_replica() -> None:
    members = [member(1, "0:4", 6), member(2, "4:8", 4), member(4, "10:12", 2)]
    assert {who: str(move.span) for who, move in plan(members, 12).items()} == {peer(1): "0:6", peer(2): "6:10"}
    assert plan([member(1, "0:4", 4), member(2, "4:8", 4), member(4, "10:12", 2)], 12) == {}, "no capacity, so no peer moves"


def test_nobody_who_was_told_its_blocks_moves() -> None:
    members = [member(1, "0:4"), member(2, "0:4"), member(3, "0:8")]
    assert plan(members, 12) == {}


def test_two_slow_ends_gain_from_a_crowded_middle() -> None:
    members = [member(1, "0:4", 4), *(member(number, "4:8", 4) for number in range(2, 8)), member(8, "8:12", 4)]
    moves = plan(members, 12)
    assert sorted(str(move.span) for move in moves.values()) == ["0:4", "8:12"]
    assert all(not move.is_urgent and "2.00 times as fast" in move.reason for move in moves.values())


def test_speed_counts_not_heads() -> None:
    members = [member(1, "0:2", 2, speed=9.0), *(member(number, "2:4", 2) for number in range(2, 7))]
    assert plan(members, 4) == {}
    slow = [member(1, "0:2", 2, speed=0.5), *(member(number, "2:4", 2) for number in range(2, 7))]
    assert {str(move.span) for move in plan(slow, 4).values()} == {"0:2"}
