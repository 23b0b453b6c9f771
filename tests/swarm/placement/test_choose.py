"""Placement: what a newcomer takes, that it fits, and that newcomers together cover what their memory can cover."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.ids import PeerId, Span
from swarm.placement.choose import Room, choose, count_replicas, outranking, overlaps


def room(num_blocks: int, takes: int, exactly: int | None = None) -> Room:
    """A model of equal blocks of 10 bytes, and memory for `takes` of them."""
    return Room(free_bytes=takes * 10 + 9, block_bytes=(10,) * num_blocks, num_blocks=exactly)


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044d}".replace("0", "z"))


def test_a_lone_peer_that_can_hold_everything_takes_everything() -> None:
    choice = choose(peer(1), [0] * 6, room(6, 6))
    assert choice.span == Span(0, 6)
    assert "nobody hosts 6 of its 6 blocks" in choice.reason


def test_the_gap_is_taken_before_anything_else() -> None:
    assert choose(peer(1), [1, 1, 0, 0, 1, 2], room(6, 2)).span == Span(2, 4)
    assert choose(peer(1), [3, 3, 2, 2, 1, 2], room(6, 2)).span == Span(4, 6)


def test_no_crumbs_are_left_between_newcomers() -> None:
    starts = {choose(peer(number), [0] * 12, room(12, 4)).span.start for number in range(40)}
    assert starts == {0, 4, 8}  # all three: the hash of the peer decides


def test_the_number_of_blocks_can_be_given() -> None:
    assert len(choose(peer(1), [0] * 6, room(6, 6, exactly=2)).span) == 2


def test_unequal_blocks_are_weighed_one_by_one() -> None:
    heavy = Room(free_bytes=100, block_bytes=(90, 20, 20, 20, 20))
    assert heavy.windows() == [Span(0, 1), Span(1, 5)]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (Room(free_bytes=5, block_bytes=(10, 10)), "no memory for 1 of the model's blocks"),
        (room(6, 3, exactly=4), "no memory for 4"),
        (room(6, 6, exactly=7), "--num-blocks 7 is more than the model has: 6 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(which: Room, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(peer(1), [0] * len(which.block_bytes), which)


def test_of_two_who_collide_exactly_one_yields() -> None:
    for number in range(20):
        claims = [(peer(number), Span(0, 3)), (peer(number + 50), Span(2, 6))]
        yields = [overlaps(span, outranking(who, claims)) for who, span in claims]
        assert sorted(yields) == [False, True]
    assert not overlaps(Span(0, 3), [Span(3, 6)])


@given(
    replicas=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    free=st.integers(0, 400),
    data=st.data(),
)
def test_a_choice_fits_and_holds_the_neediest(replicas: list[int], free: int, data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(1, 60), min_size=len(replicas), max_size=len(replicas))))
    mine = Room(free_bytes=free, block_bytes=sizes)
    if min(sizes) > free:
        with pytest.raises(ConfigError):
            choose(peer(1), replicas, mine)
        return
    span = choose(peer(1), replicas, mine).span
    assert sum(sizes[span.start : span.stop]) <= free
    assert span.stop == len(sizes) or span.start == 0 or sum(sizes[span.start : span.stop + 1]) > free  # no room wasted
    neediest = [block for block, count in enumerate(replicas) if count == min(replicas) and sizes[block] <= free]
    assert not neediest or any(block in span for block in neediest)


@given(num_blocks=st.integers(1, 24), takes=st.integers(1, 24))
def test_peers_who_come_one_by_one_cover_the_model_with_as_few_as_can_be(num_blocks: int, takes: int) -> None:
    takes, spans = min(takes, num_blocks), list[Span]()
    for number in range(-(-num_blocks // takes)):
        spans.append(choose(peer(number), count_replicas(spans, num_blocks), room(num_blocks, takes)).span)
    assert min(count_replicas(spans, num_blocks)) >= 1


@settings(max_examples=300)
@given(
    num_blocks=st.integers(1, 16),
    takes=st.lists(st.integers(1, 8), min_size=1, max_size=8)
    | st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda pair: [pair[0]] * pair[1]),
    first=st.integers(0, 1000),
)
def test_peers_who_come_at_once_settle_and_cover_what_they_can(num_blocks: int, takes: list[int], first: int) -> None:
    """The race, in lock step: everybody announces, waits, looks, and moves if a smaller hash claims the same."""
    peers = [peer(first + number) for number in range(len(takes))]
    rooms = [room(num_blocks, min(size, num_blocks)) for size in takes]
    spans = [choose(who, [0] * num_blocks, what).span for who, what in zip(peers, rooms, strict=True)]
    for _round in range(len(takes)):
        moved = [
            _after_a_look(who, span, what, list(zip(peers, spans, strict=True)), num_blocks)
            for who, span, what in zip(peers, spans, rooms, strict=True)
        ]
        settled, spans = moved == spans, moved
        if settled:
            break
    assert [
        _after_a_look(*one, list(zip(peers, spans, strict=True)), num_blocks) for one in zip(peers, spans, rooms, strict=True)
    ] == spans
    equal_and_enough = min(takes) == max(takes) and len(takes) * takes[0] >= num_blocks + takes[0] - 1
    if equal_and_enough or len(takes) * min(takes) >= 2 * num_blocks:
        assert min(count_replicas(spans, num_blocks)) >= 1, f"blocks without a host: {spans} with room for {takes}"


def _after_a_look(who: PeerId, span: Span, what: Room, claims: list[tuple[PeerId, Span]], num_blocks: int) -> Span:
    stronger = outranking(who, claims)
    if not overlaps(span, stronger):
        return span
    return choose(who, count_replicas(stronger, num_blocks), what, current=span).span
