"""A new node's span fits its memory and joins its neighbours.

New nodes together make a route if memory allows one.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.ids import PeerId, Span
from swarm.placement.choose import Capacity, Choice, choose, count_replicas, gaps_of, outranking, overlaps
from swarm.placement.members import Member
from swarm.routing.path import missing

ROOMS = st.lists(st.integers(1, 8), min_size=1, max_size=8)
EQUAL_ROOMS = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda pair: [pair[0]] * pair[1])


def capacity(num_blocks: int, takes: int, at_most: int | None = None) -> Capacity:
    """A model of equal blocks of 10 bytes, and memory for `takes` of them."""
    return Capacity(free_bytes=takes * 10 + 9, block_bytes=(10,) * num_blocks, num_blocks=at_most)


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044d}".replace("0", "z"))


def spans(*texts: str) -> list[Span]:
    return [Span.parse(text) for text in texts]


def take(who: PeerId, hosted: list[Span], what: Capacity, current: Span | None = None) -> Choice:
    """What `who` chooses next to peers of one speed."""
    return choose(who, [Member(peer=peer(1_000 + number), span=span) for number, span in enumerate(hosted)], what, current)


def at_speeds(**speeds: float) -> list[Member]:
    """Members by span, as `b0_3=2.0` (blocks a millisecond)."""
    texts = [text.removeprefix("b").replace("_", ":") for text in speeds]
    return [
        Member(peer=peer(number), span=Span.parse(text), speed=speed)
        for number, (text, speed) in enumerate(zip(texts, speeds.values(), strict=True))
    ]


@st.composite
def hosted_spans(draw: st.DrawFn, num_blocks: int) -> list[Span]:
    starts = draw(st.lists(st.integers(0, num_blocks - 1), max_size=6))
    return [Span(start, draw(st.integers(start + 1, num_blocks))) for start in starts]


def test_a_lone_peer_that_can_hold_everything_takes_everything() -> None:
    choice = take(peer(1), [], capacity(6, 6))
    assert choice.span == Span(0, 6)
    assert "no node hosts them" in choice.reason


def test_a_gap_is_filled_before_anything_else_and_never_overlapped() -> None:
    assert take(peer(1), spans("0:2", "4:6"), capacity(6, 2)).span == Span(2, 4)
    assert take(peer(1), spans("0:2", "4:6"), capacity(6, 6)).span == Span(2, 4)  # a longer span would join no other
    assert take(peer(1), spans("0:5", "0:5", "7:12"), capacity(12, 5)).span == Span(5, 7)


def test_no_crumbs_are_left_between_newcomers() -> None:
    starts = {take(peer(number), [], capacity(12, 4)).span.start for number in range(40)}
    assert starts == {0, 4, 8}  # all three: the hash of the peer decides


def test_a_replica_goes_where_there_are_fewest_and_meets_the_others() -> None:
    hosted = spans("0:3", "0:3", "3:6")
    assert take(peer(1), hosted, capacity(6, 3)).span == Span(3, 6)
    assert take(peer(1), hosted, capacity(6, 5)).span == Span(3, 6)  # 1:6 would hold more, and join no other
    assert take(peer(1), hosted, capacity(6, 6)).span == Span(0, 6)


def test_two_slow_nodes_need_help_more_than_a_fast_one() -> None:
    slow = [*at_speeds(b0_3=9.0, b3_6=0.3), *at_speeds(b3_6=0.33)]
    choice = choose(peer(5), slow, capacity(6, 3))
    assert choice.span == Span(3, 6)
    assert choice.reason.startswith("block 3 is the slowest: 0.21 tokens/ms from 2 nodes; ")
    assert choose(peer(5), slow, capacity(6, 6)).span == Span(0, 6), "who holds all helps the slowest, too"
    assert take(peer(5), [one.span for one in slow], capacity(6, 3)).span == Span(0, 3), "by heads it would be the other"


def test_a_long_span_slows_its_blocks_down() -> None:
    assert choose(peer(5), at_speeds(b0_4=1.0, b4_6=0.8), capacity(6, 4)).span == Span(0, 4)


def test_where_the_slowest_block_does_not_fit_the_reason_says_so() -> None:
    swarm = at_speeds(b0_4=1.0, b4_6=4.0, b6_8=2.0)
    choice = choose(peer(5), swarm, capacity(8, 2))
    assert choice.span == Span(6, 8)
    assert choice.reason.startswith("block 6 is the slowest of those that fit: 1 tokens/ms from 1 node; ")


def test_of_blocks_that_are_alike_fast_those_with_fewer_nodes_are_taken() -> None:
    swarm = [*at_speeds(b0_3=2.0, b3_6=1.0), *at_speeds(b3_6=1.0)]
    assert {choose(peer(number), swarm, capacity(6, 3)).span for number in range(20)} == {Span(0, 3)}


@given(
    num_blocks=st.integers(1, 12),
    takes=st.integers(1, 12),
    factors=st.lists(st.floats(1, 1.19), min_size=6, max_size=6),
    data=st.data(),
)
def test_measurement_noise_changes_no_choice(num_blocks: int, takes: int, factors: list[float], data: st.DataObject) -> None:
    hosted = data.draw(hosted_spans(num_blocks))
    noisy = [Member(peer=peer(number), span=span, speed=factors[number]) for number, span in enumerate(hosted)]
    assert choose(peer(99), noisy, capacity(num_blocks, takes)) == take(peer(99), hosted, capacity(num_blocks, takes))


def test_overlapping_spans_of_stubborn_peers_are_bridged() -> None:
    assert take(peer(1), spans("0:4", "2:6"), capacity(6, 2)).span in spans("0:2", "4:6")


def test_a_peer_too_small_for_any_part_begins_one_that_the_next_completes() -> None:
    first = take(peer(1), spans("0:6"), capacity(6, 3)).span
    second = take(peer(2), [*spans("0:6"), first], capacity(6, 3)).span
    assert sorted([first, second]) == spans("0:3", "3:6")


def test_the_volunteer_may_limit_the_number_of_blocks() -> None:
    assert len(take(peer(1), [], capacity(6, 6, at_most=2)).span) == 2


def test_unequal_blocks_are_weighed_one_by_one() -> None:
    heavy = Capacity(free_bytes=100, block_bytes=(90, 20, 20, 20, 20))
    assert heavy.tiles(Span(0, 5)) == [Span(0, 1), Span(1, 5)]


def test_where_the_missing_block_is_too_large_another_is_taken() -> None:
    heavy = Capacity(free_bytes=30, block_bytes=(90, 20, 20))
    assert take(peer(1), spans("1:3"), heavy).span in spans("1:2", "2:3")


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(
        ConfigError, match="no memory for even one of the model's blocks: the smallest takes 10 MB with K/V, there are 5 MB"
    ):
        take(peer(1), [], Capacity(free_bytes=5_000_000, block_bytes=(10_000_000, 20_000_000)))


def test_of_two_who_collide_exactly_one_yields() -> None:
    for number in range(20):
        claims = [Member(peer=peer(number), span=Span(0, 3)), Member(peer=peer(number + 50), span=Span(2, 6))]
        yields = [overlaps(one.span, [other.span for other in outranking(one.peer, claims)]) for one in claims]
        assert sorted(yields) == [False, True]
    assert not overlaps(Span(0, 3), [Span(3, 6)])


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=16), free=st.integers(0, 300), data=st.data())
def test_a_choice_always_fits(sizes: list[int], free: int, data: st.DataObject) -> None:
    hosted = data.draw(hosted_spans(len(sizes)))
    mine = Capacity(free_bytes=free, block_bytes=tuple(sizes))
    if min(sizes) > free:
        with pytest.raises(ConfigError):
            take(peer(1), hosted, mine)
        return
    span = take(peer(1), hosted, mine).span
    assert mine.takes(span) <= free and span.stop <= len(sizes)
    empty = [block for gap in gaps_of(count_replicas(hosted, len(sizes))) for block in range(gap.start, gap.stop)]
    if any(sizes[block] <= free for block in empty):
        assert set(range(span.start, span.stop)) <= set(empty)


@given(num_blocks=st.integers(1, 24), takes=st.integers(1, 24))
def test_peers_who_come_one_by_one_make_a_route_with_as_few_as_can_be(num_blocks: int, takes: int) -> None:
    takes, hosted = min(takes, num_blocks), list[Span]()
    for number in range(-(-num_blocks // takes)):
        hosted.append(take(peer(number), hosted, capacity(num_blocks, takes)).span)
    assert missing(hosted, num_blocks) == []


@given(num_blocks=st.integers(1, 12), takes=ROOMS, data=st.data())
def test_whatever_stubborn_peers_host_newcomers_make_a_route(num_blocks: int, takes: list[int], data: st.DataObject) -> None:
    hosted = data.draw(hosted_spans(num_blocks))
    for number in range(2 * num_blocks):
        if not missing(hosted, num_blocks):
            return
        hosted.append(take(peer(number), hosted, capacity(num_blocks, takes[number % len(takes)])).span)
    assert missing(hosted, num_blocks) == [], hosted


@given(num_blocks=st.integers(1, 12), takes=st.integers(1, 12))
def test_as_many_again_make_every_block_survive_a_death(num_blocks: int, takes: int) -> None:
    takes, hosted = min(takes, num_blocks), list[Span]()
    for number in range(2 * -(-num_blocks // takes)):
        hosted.append(take(peer(number), hosted, capacity(num_blocks, takes)).span)
    for index in range(len(hosted)):
        assert missing(hosted[:index] + hosted[index + 1 :], num_blocks) == [], hosted


def after_a_look(who: PeerId, span: Span, what: Capacity, claims: list[tuple[PeerId, Span]]) -> Span:
    stronger = [one.span for one in outranking(who, [Member(peer=other, span=theirs) for other, theirs in claims])]
    return take(who, stronger, what, current=span).span if overlaps(span, stronger) else span


@given(num_blocks=st.integers(1, 16), takes=ROOMS | EQUAL_ROOMS, first=st.integers(0, 1000))
def test_peers_who_come_at_once_settle_and_make_a_route(num_blocks: int, takes: list[int], first: int) -> None:
    """The race, in lock step: each peer announces, waits, looks, and moves if a smaller hash claims the same."""
    peers = [peer(first + number) for number in range(len(takes))]
    rooms = [capacity(num_blocks, min(size, num_blocks)) for size in takes]
    taken = [take(who, [], what).span for who, what in zip(peers, rooms, strict=True)]
    for _round in range(len(takes) + 1):
        claims = list(zip(peers, taken, strict=True))
        moved = [after_a_look(who, span, what, claims) for (who, span), what in zip(claims, rooms, strict=True)]
        settled, taken = moved == taken, moved
    assert settled
    is_enough = len(takes) * min(takes) >= 2 * num_blocks
    if min(takes) == max(takes):
        is_enough = len(takes) * takes[0] >= num_blocks + takes[0] - 1
    if is_enough:
        assert missing(taken, num_blocks) == [], f"no route over {taken} with capacities {takes}"
