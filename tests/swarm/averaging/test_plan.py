"""The plan: each index counts once, and members that differ are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.averaging import Decision
from protocols.cards import Agreement, Card, Ledger, UnitSum
from protocols.groups import Group, GroupId, Member
from protocols.identity import from_seed
from protocols.ids import ModelId
from protocols.masks import mask_of
from protocols.units import Blocks, Ends
from swarm.averaging.ending import conclude
from swarm.averaging.plan import MemberFailedError, check_cards, missing_text, plan

PEERS = [from_seed(bytes([number]) * 32) for number in range(1, 6)]
M = 8


def group(number: int, version: int = 3) -> Group:
    members = tuple(Member(peer=identity.peer_id) for identity in PEERS[:number])
    return Group(id=GroupId(bytes(16)), run=ModelId("r", "ab" * 32), version=version, units=(Blocks(0, 1), Ends()),
                 members=members, num_micro_batches=M)  # fmt: skip


def card(of: Group, place: int, *held: Sequence[int], version: int = 3, chain: bytes = bytes(32), **changes: Any) -> Card:
    """held: the indices of block 0, of the embedding and of the head; one for all three if there is one."""
    block, embed, head = (mask_of(one) for one in (held * 3 if len(held) == 1 else held))
    units = (
        UnitSum(num_values=5, chain=chain if version else b"", held=(block,)),
        UnitSum(num_values=7, chain=chain if version else b"", held=(embed, head)),
    )
    ledger = Ledger(version=version, units=units)
    ledger = replace(
        ledger, num_targets={i: 10 + i for i in range(M + 1) if ledger.any_held >> i & 1} | changes.pop("targets", {})
    )
    made = Card(group=of.digest(), peer=of.members[place].peer, ledger=ledger)
    return replace(made, **changes).signed(PEERS[place].sign)


def test_a_whole_batch_over_members_is_complete() -> None:
    of = group(3)
    cards = [card(of, 0, (0, 1, 2)), card(of, 1, ()), card(of, 2, (3, 4, 5, 6, 7))]
    check_cards(of, cards)
    found = plan(of, cards)
    assert found.is_complete and found.taking_part == (0, 1, 2) and found.included == (0, 2)
    assert found.num_targets == sum(10 + index for index in range(M)) and not found.duplicated and not found.behind


def test_of_two_sums_that_share_an_index_the_larger_stays_and_the_rest_of_the_other_is_missing() -> None:
    of = group(3)
    found = plan(of, [card(of, 0, (0, 1, 2)), card(of, 1, (2, 3, 4, 5)), card(of, 2, (6, 7))])
    assert found.included == (1, 2) and found.duplicated == (0,)
    assert found.missing == (0b11, 0b11, 0b11) and found.reopening(0) == "reset" and found.reopening(1) == "as before"
    assert missing_text(of, found.missing).startswith("missing micro-batches: decoder/0:1: 2, decoder/ends/embed: 2")


def test_embedding_and_head_of_one_index_may_be_at_two_members() -> None:
    of = group(2)
    found = plan(of, [card(of, 0, range(M), range(M), ()), card(of, 1, (), (), range(M))])
    assert found.is_complete and found.included == (0, 1) and found.num_targets == sum(10 + index for index in range(M))
    twice = plan(of, [card(of, 0, range(M), range(M), (4,)), card(of, 1, (), (), range(M))])
    assert twice.duplicated == (1,) and twice.missing == (0, 0, 0b11101111)


def test_a_member_that_counts_target_tokens_differently_stays_out() -> None:
    of = group(2)
    found = plan(of, [card(of, 0, range(M), range(M), ()), card(of, 1, (), (), range(M), targets={3: 99})])
    assert found.included == (0,) and found.duplicated == (1,) and found.num_targets == sum(10 + i for i in range(M))


def test_an_older_version_and_the_smaller_side_of_a_fork_are_behind() -> None:
    of = group(5)
    ours, theirs = bytes(32), b"x" * 32
    cards = [card(of, 0, range(M), chain=ours), card(of, 1, (), chain=theirs), card(of, 2, (), chain=ours),
             card(of, 3, (), version=2), card(of, 4, (), chain=theirs)]  # fmt: skip
    found = plan(of, cards)
    assert found.behind == (1, 3, 4) and found.reopening(3) == "behind" and found.chains == (ours, ours)
    ahead = plan(of, [*cards[:4], card(of, 4, (), version=4)])
    assert ahead.version == 4 and ahead.taking_part == (4,)


def test_of_a_fork_the_side_that_the_trainer_knows_goes_on() -> None:
    of = replace(group(3), chains=(b"x" * 32,) * 2)
    ours, theirs, third = bytes(32), b"x" * 32, b"y" * 32
    found = plan(of, [card(of, 0, range(M), chain=ours), card(of, 1, (), chain=theirs), card(of, 2, (), chain=ours)])
    assert found.behind == (0, 2) and found.chains == of.chains
    unknown = plan(of, [card(of, 0, range(M), chain=ours), card(of, 1, (), chain=third), card(of, 2, (), chain=ours)])
    assert unknown.behind == (1,), "if no member has them, the larger side"
    later = plan(of, [card(of, 0, (), chain=theirs), card(of, 1, (), version=4, chain=ours)])
    assert later.behind == (0,), "a later version counts more"


def test_an_agreement_of_a_member_is_found() -> None:
    of = group(2)
    agreed = Agreement(group_id=GroupId(b"g" * 16), digest=b"d" * 32)
    assert plan(of, [card(of, 0, range(M)), card(of, 1, (), agreed=agreed)]).agreed == agreed


def test_cards_are_checked() -> None:
    of = group(2)
    good = [card(of, 0, (0,)), card(of, 1, (1,))]
    check_cards(of, good)
    other = replace(of, id=GroupId(b"o" * 16))
    forged = replace(good[1], ledger=replace(good[1].ledger, version=9))
    short = replace(good[1].ledger, units=good[1].ledger.units[:1])
    for bad in (card(other, 1, (1,)), forged, card(of, 1, (M,)), replace(good[1], ledger=short).signed(PEERS[1].sign)):
        with pytest.raises(MemberFailedError) as raised:
            check_cards(of, [good[0], bad])
        assert raised.value.peer == PEERS[1].peer_id
    with pytest.raises(MemberFailedError):
        check_cards(of, good[::-1])
    with pytest.raises(MemberFailedError, match="2 members"):
        check_cards(of, good[:1])


def test_members_that_disagree_over_a_units_size_are_named() -> None:
    of = group(2)
    odd = card(of, 1, (1,))
    units = (replace(odd.ledger.units[0], num_values=6), odd.ledger.units[1])
    with pytest.raises(MemberFailedError, match="decoder/0:1 has 6 values") as raised:
        plan(of, [card(of, 0, (0,)), replace(odd, ledger=replace(odd.ledger, units=units))])
    assert raised.value.peer == PEERS[1].peer_id


_held = st.sets(st.integers(0, M - 1), max_size=M)


@settings(max_examples=40)
@given(st.lists(st.tuples(_held, _held, _held), min_size=1, max_size=5))
def test_every_index_of_every_part_is_in_one_included_sum_or_missing(holdings: list[tuple[set[int], set[int], set[int]]]) -> None:
    of = group(len(holdings))
    found = plan(of, [card(of, place, *held) for place, held in enumerate(holdings)])
    for part, missing in enumerate(found.missing):
        for index in range(M):
            holders = [place for place in found.included if index in holdings[place][part]]
            assert len(holders) + (missing >> index & 1) == 1
    assert set(found.included).isdisjoint(found.duplicated) and set(found.included) <= set(found.taking_part)
    assert not any(found.missing) or not found.is_complete


VOTE, OTHER = b"v" * 32, b"o" * 32


@pytest.mark.parametrize(
    ("answers", "has_agreed"),
    [
        ([], True),
        ([("open", VOTE), ("open", VOTE)], True),
        ([("open", VOTE), ("unknown", b"")], True),
        ([("open", VOTE), ("agreed", VOTE)], True),
        ([("aborted", b""), ("open", VOTE)], False),
        ([("open", OTHER)], False),
        ([("open", b"")], False),
    ],
)
def test_without_a_leader_the_members_end_a_group_alike(answers: list[tuple[Any, bytes]], has_agreed: bool) -> None:
    assert conclude(VOTE, [Decision(said=said, vote=vote) for said, vote in answers]) is has_agreed
