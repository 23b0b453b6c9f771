"""Choice of blocks: what counts as hosted, formats, races.

Pure functions, with records in any order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

import pytest

from node.config import NodeConfig, parse_address
from node.placement.neighbours import successors
from node.placement.span_choice import (
    MAX_PLANNED,
    RACE_ROUNDS,
    RACE_WAIT_S,
    Claim,
    Claims,
    as_told,
    beside,
    claims,
    claims_by_peer,
    look_again,
    other_weights,
    planned,
    settle,
    usual_dtype,
)
from protocols.errors import ConfigError
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS
from protocols.weights_id import Weights
from swarm import places
from swarm.placement.choose import Capacity, Choice, outranking
from swarm.placement.members import Member
from tests.hosting import hosted
from tests.swarm.inference.toy import fresh_seed, new_identity
from tests.virtual_time import loop_clock, virtual_time

MODEL = ModelId("tiny", "a" * 64)
WEIGHTS = Weights(MODEL)
CAPACITY = Capacity(free_bytes=39, block_bytes=(10,) * 6)
CONFIG = NodeConfig(model="m", data_dir=places.data_dir({"HOME": "/h"}))
ME = PeerId("12D3KooW" + "7" * 44)


@dataclass
class Records:
    peers: tuple[PeerRecord, ...]


def record(
    letter: str, span: Span, *, state: str = "serving", model: ModelId = MODEL, dtype: str = "float32", **load: float
) -> PeerRecord:
    served = hosted(model, span, 6, dtype=dtype, **load)
    return PeerRecord(peer=PeerId("12D3KooW" + letter * 44), state=state, hosted=served)


def claim(letter: str, span: Span, is_joining: bool) -> Claim:
    who = PeerId("12D3KooW" + letter * 44)
    return Claim(who, hosted(MODEL, span, 6)[0], is_joining, Member(peer=who, span=span))


def test_a_node_that_trains_has_its_blocks_whatever_versions_it_serves() -> None:
    """A newcomer of a run has version 0, the others serve what they have trained: the newest, and an older one for sessions."""
    at = record("1", Span(0, 3))
    versions = tuple(replace(one, weights=Weights(MODEL, n, bytes(32))) for n in (7, 6) for one in at.hosted)
    found = claims(Records((replace(at, hosted=versions),)), WEIGHTS, ME)
    assert [(str(one.hosted.span), one.hosted.weights.version) for one in found] == [("0:3", 7)]


def test_only_the_same_weights_of_those_who_stay_are_claims() -> None:
    records = Records(
        (
            record("1", Span(0, 3)),
            record("2", Span(3, 6), state="draining"),
            record("3", Span(3, 6), model=ModelId("tiny", "b" * 64)),
            record("7", Span(0, 6)),  # ourselves
            record("4", Span(3, 6), state="joining", dtype="bfloat16"),
        )
    )
    found = claims(records, WEIGHTS, ME)
    assert [(str(one.hosted.span), one.is_joining) for one in found] == [("0:3", False), ("3:6", True)]
    assert other_weights(records, MODEL) == ["b" * 64]
    assert usual_dtype(found[:1]) == "float32"
    assert usual_dtype([]) is None


async def test_a_newcomer_goes_to_the_slow_node_with_the_speeds_of_the_records() -> None:
    records = Records((record("1", Span(0, 3), block_ms=0.5), record("2", Span(3, 6), block_ms=4.0)))

    async def look() -> list[Claim]:
        return claims(records, WEIGHTS, ME)

    async def announce(span: Span) -> None:
        assert span == Span(3, 6)

    choice = await settle(CONFIG, ME, CAPACITY, look, announce, is_alone=True)
    assert choice.span == Span(3, 6) and "block 3 is the slowest: 0.083 tokens/ms from 1 node" in choice.reason


def test_who_joins_counts_as_fast_as_the_others_usually_are() -> None:
    joining = record("3", Span(3, 6), state="joining")
    measured = [record(letter, Span(0, 3), block_ms=ms) for letter, ms in (("1", 0.5), ("2", 0.25), ("4", 0.1))]
    assert [one.member.speed for one in claims(Records((*measured, joining)), WEIGHTS, ME)] == [2.0, 4.0, 8.0, 4.0]
    assert [one.member.speed for one in claims(Records((joining,)), WEIGHTS, ME)] == [1.0]


def test_a_record_says_who_hosts_the_ends() -> None:
    served = hosted(MODEL, Span(0, 3), 6, ends=True)
    (found,) = claims_by_peer([replace(record("1", Span(0, 3)), hosted=served)], WEIGHTS, "float32", ME)
    assert found.claim.beside == ENDS and not claims_by_peer([record("1", Span(0, 3))], WEIGHTS, "float32", ME)[0].claim.beside


def test_of_a_crowd_a_plan_counts_those_that_we_met_and_some_of_every_span() -> None:
    def serving(number: int, span: Span) -> Claims:
        return Claims(PeerId(f"p{number}"), Member(peer=PeerId(f"p{number}"), span=span), None)

    flood = [serving(number, Span(number % 3, 4)) for number in range(5_000)]
    rare, friend = serving(9_000, Span(4, 6)), serving(9_001, Span(0, 4))
    found = planned([*flood, rare, friend], lambda peer: peer == friend.peer)
    assert len(found) == MAX_PLANNED and found[0] == friend and rare in found
    assert set(found) == set(planned([friend, *flood[::-1], rare], lambda peer: peer == friend.peer)), "whatever the order"
    assert planned(flood[:MAX_PLANNED], lambda peer: False) == flood[:MAX_PLANNED]


def test_unknown_formats_do_not_keep_a_newcomer_out() -> None:
    odd = claims(Records(tuple(record(letter, Span(0, 3), dtype="float3") for letter in "123")), WEIGHTS, ME)
    assert len(odd) == 3 and usual_dtype(odd) is None
    assert usual_dtype([*odd, *claims(Records((record("4", Span(0, 3), dtype="bfloat16"),)), WEIGHTS, ME)]) == "bfloat16"


def test_the_weaker_of_two_moves_into_the_gap_and_the_stronger_stays() -> None:
    for letter in "123456":
        rival = claim(letter, Span(0, 3), is_joining=True)
        after = look_again(ME, Choice(Span(0, 3), "first"), [rival], CAPACITY)
        is_weaker = bool(outranking(ME, [rival.member]))
        assert after.span == (Span(3, 6) if is_weaker else Span(0, 3))
    settled = claim("1", Span(0, 3), is_joining=False)
    assert look_again(ME, Choice(Span(0, 3), "first"), [settled], CAPACITY).span == Span(0, 3)  # a replica is no race


@virtual_time
async def test_newcomers_of_one_moment_leave_no_block_out_and_are_settled_after_as_many_looks_as_they_are() -> None:
    draw = random.Random(fresh_seed())
    for num_peers in (2, 2, 2, 3, 4, 6, 8) * 3:
        began_s, directory = loop_clock().now_s(), dict[PeerId, PeerRecord]()

        async def join(me: PeerId, directory: dict[PeerId, PeerRecord] = directory) -> Span:
            async def look() -> list[Claim]:
                await asyncio.sleep(draw.uniform(0, 0.01))
                return claims(Records(tuple(directory.values())), WEIGHTS, me)

            async def announce(span: Span) -> None:
                await asyncio.sleep(draw.uniform(0.1, 1.0))
                directory[me] = replace(record("1", span, state="joining"), peer=me)

            return (await settle(CONFIG, me, CAPACITY, look, announce)).span

        spans = await asyncio.gather(*(join(new_identity().peer_id) for _ in range(num_peers)))
        assert {Span(0, 3), Span(3, 6)} == set(spans), spans
        took_s = loop_clock().now_s() - began_s
        assert RACE_WAIT_S < took_s < min(num_peers, RACE_ROUNDS) * (RACE_WAIT_S + 1.01) + 1.01


async def test_a_node_that_was_told_its_blocks_announces_and_keeps_them() -> None:
    announced: list[Span] = []

    async def look() -> list[Claim]:
        raise AssertionError("nothing to decide")

    async def announce(span: Span) -> None:
        announced.append(span)

    config = NodeConfig(model="m", blocks=Span(1, 3), data_dir=places.data_dir({"HOME": "/h"}))
    choice = await settle(config, ME, CAPACITY, look, announce)
    assert (choice.span, announced) == (Span(1, 3), [Span(1, 3)])


def test_told_blocks_are_checked_against_memory() -> None:
    with pytest.raises(ConfigError, match="no memory for blocks 0:6"):
        as_told(Span(0, 6), CAPACITY)


def test_successors_are_those_who_serve_what_comes_next() -> None:
    records = [
        record("1", Span(2, 4)),
        record("2", Span(2, 6), state="joining"),
        record("3", Span(1, 4)),
        record("4", Span(2, 3)),
    ]
    assert [found.peer[-1] for found in successors(records, WEIGHTS, Span(0, 2))] == ["1", "4"]
    assert successors(records, Weights(ModelId("tiny", "b" * 64)), Span(0, 2)) == []
    assert len(successors([record("1", Span(2, 4))] * 20, WEIGHTS, Span(0, 2))) == 8


def test_addresses_are_read_with_both_kinds_of_host() -> None:
    assert parse_address("127.0.0.1:0", "--listen") == ("127.0.0.1", 0)
    assert parse_address("[::1]:4000", "--listen") == ("::1", 4000)


def test_the_data_directory_follows_the_environment() -> None:
    assert str(places.data_dir({"XDG_DATA_HOME": "/x"})) == "/x/murmuration"
    assert str(places.data_dir({"HOME": "/h"})) == "/h/.local/share/murmuration"


@pytest.mark.parametrize(
    ("wish", "span", "left", "expected", "says"),
    [
        (None, Span(0, 2), 10, True, "of the 0 MB that are left"),
        (None, Span(4, 6), 10, True, "of the"),
        (None, Span(0, 2), 9, False, "the blocks leave"),
        (None, Span(0, 2), -5, False, "the blocks leave 0 MB"),
        (None, Span(2, 4), 99, False, "middle"),
        (True, Span(2, 4), 99, False, "middle"),
        (True, Span(0, 6), 0, True, "as asked"),
        (False, Span(0, 6), 99, False, "--no-ends"),
    ],
)
def test_outer_spans_host_the_ends_where_there_is_room_or_they_are_wished_for(
    wish: bool | None, span: Span, left: int, expected: bool, says: str
) -> None:
    found, reason = beside(wish, span, 6, 10, left)
    assert found == (ENDS if expected else frozenset()) and says in reason


def test_ends_that_are_wished_for_are_counted_with_the_outer_blocks() -> None:
    capacity = Capacity(free_bytes=39, block_bytes=(10,) * 6, beside_bytes=15)
    assert [capacity.takes(span) for span in (Span(0, 2), Span(1, 3), Span(5, 6), Span(0, 6))] == [35, 20, 25, 75]
    assert capacity.longest_from(0, 6) == Span(0, 2) and capacity.longest_from(1, 5) == Span(1, 4)
    with pytest.raises(ConfigError, match="no memory for blocks 0:3"):
        as_told(Span(0, 3), capacity)
